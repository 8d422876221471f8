"""All that a run needs to go on as if it had never stopped, and its checkpoints."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from keodrift.errors import ArgumentError, DivergedError, RunError, users_stacklevel
from keodrift.files import atomic_path, reading, writing
from keodrift.training.batches import Batch, BatchSource


def average_of(network: nn.Module, ema: float) -> AveragedModel:
    """An exponential average whose decay grows with the number of networks averaged so far."""

    def update(averaged: Any, weights: Any, count: Any) -> None:
        t = int(count)
        get_ema_multi_avg_fn(min(ema, (1 + t) / (10 + t)))(averaged, weights, count)

    return AveragedModel(network, multi_avg_fn=update)


@contextmanager
def own_draws(generator: torch.Generator, network: nn.Module) -> Iterator[Callable[[int], None]]:
    """Lets torch's own random state be seeded by that of a run, and restores it afterwards.

    Layers such as dropout take no generator, and draw where the network lives. Yields what seeds
    them for a step.
    """
    lives = {weight.device for weight in network.parameters()} | {generator.device}
    devices = [one for one in lives if one.type == "cuda" and torch.cuda.is_available()]

    def seed(step: int) -> None:
        word = (generator.initial_seed() + 0x9E3779B97F4A7C15 * (step + 1)) % 2**63
        # torch.manual_seed would reseed every GPU.
        torch.default_generator.manual_seed(word)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(word)

    with torch.random.fork_rng(devices):
        yield seed


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints that a run folder holds, newest first: the last one and the one before.

    Example:
        >>> checkpoints("outputs/never_begun")
        []
    """
    newest = Path(folder) / "checkpoint.pt"
    return [path for path in (newest, _before(newest)) if path.exists()]


def _before(path: Path) -> Path:
    return path.with_stem(f"{path.stem}_before")


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
        objective: The loss; the same.
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
    objective: Callable[..., Tensor]
    generator: torch.Generator
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def _parts(self) -> dict[str, dict[str, Any]]:
        """The states of all that remembers something."""
        parts = {name: part for name, part in vars(self).items() if isinstance(part, Stateful)}
        return {name: state for name, part in parts.items() if (state := part.state_dict())}

    def save(self, path: Path) -> None:
        """Writes a checkpoint atomically; one that is there stays, as ``…_before``.

        Raises:
            DivergedError: The network's weights are not finite; earlier checkpoints stay.
            ArgumentError: As `serialised`; earlier checkpoints stay.
            RunError: It cannot be written; earlier checkpoints stay.
        """
        self.check_finite()
        data = self.serialised()
        with atomic_path(path) as draft:
            draft.write_bytes(data)
            if path.exists():
                # Killed after this, a run goes on from the one before.
                os.replace(path, _before(path))

    def save_diverged(self, path: Path, batch: Batch, objective: str) -> None:
        """Writes what a training diverged on, for ``torch.load(path, weights_only=True)``.

        That is the steps done, the objective in words, the batch (of its options the tensors),
        the weights, and the random state, which is that after the batch was drawn.

        Raises:
            RunError: It cannot be written.
        """
        options = {name: value for name, value in batch.options.items() if torch.is_tensor(value)}
        saved = {
            "step": self.step,
            "objective": objective,
            "batch": vars(batch) | {"options": options},
            "network": self.network.state_dict(),
            "generator": self.generator.get_state(),
        }
        with atomic_path(path) as draft:
            draft.write_bytes(_bytes(saved))

    def serialised(self) -> memoryview:
        """A checkpoint as bytes, which were read once.

        Raises:
            ArgumentError: A part holds more than tensors, numbers, strings and containers of them,
                which could be written, but not read.
        """
        parts = self._parts()
        saved = {
            "parts": parts,
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        try:
            data = _bytes(saved)
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # of pickle, or of what is pickled
            strange = {name: _stranger(state) for name, state in parts.items()}
            part = next((name for name, found in strange.items() if found), "state")
            needs = "tensors, numbers and strings of Python, and containers of them"
            raise ArgumentError(part, f"a state with {strange.get(part, error)}", needs) from error
        return data

    def check_finite(self) -> None:
        """Refuses weights that are not finite.

        Raises:
            DivergedError: One is NaN or infinite.
        """
        if not all(bool(torch.isfinite(weight).all()) for weight in self.network.parameters()):
            raise DivergedError("weights of the network are NaN or infinite", self.step)

    def resume(self, folder: Path) -> None:
        """Goes on from the newest intact checkpoint of a folder, where it holds any.

        If that is the one before, the damaged one is moved aside, with a warning.

        Raises:
            ArgumentError: As `load`.
            RunError: All are damaged.
        """
        if not (found := checkpoints(folder)):
            return
        newest, *older = found
        try:
            self.load(newest)
        except RunError:
            if not older:
                raise
            self.load(older[0])
            # Where it was, the next checkpoint would move it over the intact one.
            aside = newest.with_stem("checkpoint_damaged")
            with writing(aside):
                os.replace(newest, aside)
            said = f"{newest} is damaged, and now {aside.name}"
            said += f"; the run goes on from {older[0].name}, step {self.step}"
            warnings.warn(said, stacklevel=users_stacklevel())

    def load(self, path: Path) -> None:
        """Restores everything that `save` wrote.

        Raises:
            ArgumentError: The checkpoint belongs to another network, optimiser, scheduler,
                generator, batch source or objective.
            RunError: The checkpoint is damaged, or no checkpoint.
        """
        with reading(path):
            saved = _intact(path)
        parts = self._parts()
        # What has met nothing yet may have no state of its own, and take that one all the same.
        able = {name for name, part in vars(self).items() if isinstance(part, Stateful)}
        if not parts.keys() <= saved["parts"].keys() <= able:
            got, needs = ", ".join(parts), ", ".join(saved["parts"])
            raise ArgumentError("resume", f"a state of {got}", f"that of {path}: {needs}")
        restore = {name: vars(self)[name].load_state_dict for name in saved["parts"]}
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


_PLAIN = bool, int, float, complex, str, bytes


def _stranger(state: Any, path: str = "") -> str | None:
    """The first thing in a state that no checkpoint gives back, and where it is."""
    if isinstance(state, dict | list | tuple):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        found = (_stranger(value, f"{path}[{key!r}]") for key, value in pairs)
        return next(filter(None, found), None)
    if state is None or torch.is_tensor(state) or type(state) in _PLAIN:
        return None
    return f"{type(state).__module__}.{type(state).__qualname__} at {path}"


def _bytes(value: Any) -> memoryview:
    buffer = io.BytesIO()  # what torch writes to a full disk itself hides the reason
    torch.save(value, buffer)
    return buffer.getbuffer()


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
