"""All that a run needs to go on as if it had never stopped, and its checkpoint."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from keodrift.errors import ArgumentError, DivergedError
from keodrift.files import atomic_path, reading
from keodrift.training.batches import BatchSource


@runtime_checkable
class Stateful(Protocol):
    """What remembers something between steps: networks, optimisers, some batch sources.

    A state consists of tensors, numbers, strings and containers of them.
    """

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Remembers that again."""


@dataclass
class TrainingState:
    """The state of a run.

    Attributes:
        network: The network.
        ema: Its averaged weights.
        optimizer: The optimiser over its parameters.
        scheduler: Of the learning rate, or None.
        batches: The batch source; kept where it is `Stateful`.
        generator: The run's only source of randomness.
        step: Steps done.
        seconds: Time spent on them.
        history: The rows of the log.
    """

    network: nn.Module
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    batches: BatchSource
    generator: torch.Generator
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def _parts(self) -> dict[str, Stateful]:
        return {name: part for name, part in vars(self).items() if isinstance(part, Stateful)}

    def save(self, path: Path) -> None:
        """Writes the checkpoint atomically.

        Raises:
            DivergedError: The network's weights are not finite; an earlier checkpoint stays.
            RunError: It cannot be written; an earlier checkpoint stays.
        """
        self.check_finite()
        buffer = io.BytesIO()  # what torch writes to a full disk itself hides the reason
        torch.save(
            {
                "parts": {name: part.state_dict() for name, part in self._parts().items()},
                "generator": self.generator.get_state(),
                "step": self.step,
                "seconds": self.seconds,
                "history": self.history,
            },
            buffer,
        )
        with atomic_path(path) as draft:
            draft.write_bytes(buffer.getbuffer())

    def check_finite(self) -> None:
        """Refuses weights that are not finite.

        Raises:
            DivergedError: One is NaN or infinite.
        """
        if not all(bool(torch.isfinite(weight).all()) for weight in self.network.parameters()):
            raise DivergedError("weights of the network are NaN or infinite", self.step)

    def load(self, path: Path) -> None:
        """Restores everything that `save` wrote.

        Raises:
            ArgumentError: The checkpoint belongs to another network, optimiser, scheduler,
                generator or batch source.
            RunError: The checkpoint is damaged, or no checkpoint.
        """
        with reading(path):
            saved = _intact(path)
        parts = self._parts()
        if parts.keys() != saved["parts"].keys():
            got, needs = ", ".join(parts), ", ".join(saved["parts"])
            raise ArgumentError("resume", f"a state of {got}", f"that of {path}: {needs}")
        restore = {name: part.load_state_dict for name, part in parts.items()}
        states = saved["parts"] | {"generator": saved["generator"]}
        for name, load in (restore | {"generator": self.generator.set_state}).items():
            try:
                load(states[name])
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
                got = f"{type(vars(self)[name]).__name__} for {path}"
                raise ArgumentError(name, got, f"the {name} it was written with") from error
        self.step, self.seconds, self.history = (
            saved[name] for name in ("step", "seconds", "history")
        )


_KINDS = {"parts": dict, "generator": Tensor, "step": int, "seconds": float, "history": list}


def _intact(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint; raises anything where a byte of them is not as written."""
    with zipfile.ZipFile(path) as archive:
        # torch writes checksums, and does not compare them.
        damaged = archive.testzip()
    saved = torch.load(path, map_location="cpu", weights_only=True)
    kinds = {name: type(value) for name, value in saved.items()}
    if damaged or kinds != _KINDS:
        raise zipfile.BadZipFile(damaged)
    return saved
