"""Training a one-step generator: one loop, exact resume, everything explicit.

At each step the generator f_θ makes a batch x, the drift says where its points should go, and
½·mean ‖x − sg(x + V)‖² is regressed. Randomness comes from one `torch.Generator` only, so that a
run that was cut off and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from keodrift.checks import check_choice
from keodrift.data.batches import Batch, BatchSource, latent_batches, target_batches
from keodrift.errors import ArgumentError, NonFiniteError
from keodrift.files import atomic_path
from keodrift.flow import WarmStart
from keodrift.loss import drift_loss

__all__ = ["Batch", "BatchSource", "Trainer", "latent_batches", "target_batches"]


@contextmanager
def _event_writer(folder: Path | None, step: int) -> Iterator[Callable[[str, float, int], None]]:
    """Writes numbers for TensorBoard into a run folder, where TensorBoard is installed."""
    if folder is None or importlib.util.find_spec("tensorboard") is None:
        yield lambda name, value, step: None
        return
    from torch.utils.tensorboard import SummaryWriter

    # What an interrupted run wrote after its checkpoint is about to be written again.
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
    try:
        yield writer.add_scalar
    finally:
        writer.close()


class Trainer:
    """The training loop with its state.

    Args:
        network: The generator, ``network(*batch.inputs) -> (N, d)``.
        batches: Makes one `Batch` from the random generator.
        drift: A drift, or a list of them (several temperatures).
        optimizer: Any torch optimiser over the network's parameters.
        generator: The run's only source of randomness.
        scheduler: A learning-rate scheduler, stepped once a step.
        loss_options: Passed to `keodrift.drift_loss`: ``normalize``, ``scale_features``.
        warm_start: Begin each Sinkhorn solve at the last step's potential. Writing a checkpoint
            starts the next solve cold, in the run that goes on as in the run that resumes, so
            the two stay equal.
        ema: Decay of the averaged weights in `average`; 0 makes them follow the network.
        clip: Largest gradient norm, or None.
        precision: ``"full"``, or ``"bfloat16"``: the network's products in bfloat16 (autocast),
            faster where the processor has them. Weights, samples, drift and loss stay as they are.
        evaluate: Called with the averaged network every ``evaluate_every`` steps; returns
            numbers for the log. It must bring its own random generator.
        evaluate_every: Steps between evaluations.
        log_every: Steps between lines of the log.
        folder: Where ``metrics.jsonl`` and ``checkpoint.pt`` go; None writes nothing.
        checkpoint_every: Steps between checkpoints; one is written at the end in any case.
        progress: Show a progress bar on standard error.

    Attributes:
        average: The network with averaged weights; use it to sample.
        step: Steps done.
        history: The rows of the log: ``step``, ``loss``, ``seconds`` and what ``evaluate`` gave.

    Raises:
        ArgumentError: A number is out of range, or the precision unknown.

    Reference:
        Deng et al., the drifting loss; EMA weights as in the MNIST protocol of Sinkhorn drifting.

    Example:
        >>> import keodrift as kd
        >>> from keodrift.generators import MLP
        >>> network = MLP()
        >>> trainer = Trainer(network, target_batches(network, "two_moons", 64),
        ...     kd.SinkhornDrift(0.1), torch.optim.Adam(network.parameters()),
        ...     torch.Generator().manual_seed(0))
        >>> trainer.run(2)[-1]["step"]
        2
    """

    def __init__(
        self,
        network: nn.Module,
        batches: BatchSource,
        drift: Any,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        *,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        loss_options: Mapping[str, Any] | None = None,
        warm_start: bool = True,
        ema: float = 0.999,
        clip: float | None = None,
        precision: str = "full",
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        evaluate_every: int = 100,
        log_every: int = 10,
        folder: str | Path | None = None,
        checkpoint_every: int = 1000,
        progress: bool = False,
    ) -> None:
        if not 0 <= ema < 1:
            raise ArgumentError("ema", ema, "a decay in [0, 1)")
        if clip is not None and not clip > 0:
            raise ArgumentError("clip", clip, "a positive norm, or None")
        check_choice("precision", precision, ("full", "bfloat16"))
        for name, every in (
            ("evaluate_every", evaluate_every),
            ("log_every", log_every),
            ("checkpoint_every", checkpoint_every),
        ):
            if every < 1:
                raise ArgumentError(name, every, "at least 1 step")
        drifts = list(drift) if isinstance(drift, Sequence) else [drift]
        self.drifts: list[Any] = [WarmStart(one) for one in drifts] if warm_start else drifts
        self.network, self.batches, self.optimizer = network, batches, optimizer
        self.generator, self.scheduler = generator, scheduler
        self.loss_options = dict(loss_options or {})
        self.clip, self.precision, self.evaluate = clip, precision, evaluate
        self.evaluate_every, self.log_every = evaluate_every, log_every
        self.checkpoint_every, self.progress = checkpoint_every, progress
        self.folder = None if folder is None else Path(folder)
        self.averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema))
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    @property
    def average(self) -> nn.Module:
        """The network with averaged weights."""
        return self.averaged.module

    def run(self, steps: int, *, resume: bool = False) -> list[dict[str, float]]:
        """Trains until ``steps`` steps are done in all.

        Args:
            steps: Total number of steps, those before a resume included.
            resume: Continue from the folder's checkpoint if there is one.

        Returns:
            The history.

        Raises:
            ArgumentError: ``resume`` without a folder, or a checkpoint of another network.
            FloatingPointError: The training diverged; what was kept before stays.
        """
        if steps < 1:
            raise ArgumentError("steps", steps, "at least 1")
        if resume and self.folder is None:
            raise ArgumentError("resume", True, "a folder that holds the checkpoint")
        if resume and self.checkpoint.exists():
            self.load()
        if self.folder is not None:
            # Rows later than the checkpoint are dropped: their steps are about to be redone.
            with atomic_path(self.folder / "metrics.jsonl") as draft:
                draft.write_text("".join(json.dumps(row) + "\n" for row in self.history))
        begun = time.perf_counter() - self.seconds
        saved_at = self.step
        bar = tqdm(
            total=steps, initial=self.step, desc="train", unit="step", disable=not self.progress
        )
        with bar, _event_writer(self.folder, self.step) as events:
            while self.step < steps:
                loss = self._advance()
                bar.update()
                self.seconds = time.perf_counter() - begun
                evaluates = self.evaluate is not None and self.step % self.evaluate_every == 0
                if evaluates or self.step % self.log_every == 0 or self.step == steps:
                    row = self._log(loss, evaluates)
                    for name in row.keys() - {"step"}:
                        events(name, row[name], self.step)
                    shown = {k: v for k, v in row.items() if k not in ("step", "seconds")}
                    bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)
                if self.step % self.checkpoint_every == 0:
                    self.save()
                    saved_at = self.step
        if saved_at != self.step:
            self.save()
        return self.history

    def _advance(self) -> Tensor:
        batch = self.batches(self.generator)
        self.network.train()
        x = self._generated(batch)
        with self._judging_samples():
            loss = drift_loss(x, batch.data, self.drifts, **self.loss_options, **batch.options)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.averaged.update_parameters(self.network)
        self.step += 1
        return loss.detach()

    def _generated(self, batch: Batch) -> Tensor:
        if self.precision == "full":
            return self.network(*batch.inputs)
        weights = next(self.network.parameters())
        with torch.autocast(weights.device.type, torch.bfloat16):
            return self.network(*batch.inputs).to(weights.dtype)

    def _log(self, loss: Tensor, evaluates: bool) -> dict[str, float]:
        row: dict[str, float] = {"step": self.step, "loss": float(loss)}
        if not math.isfinite(row["loss"]):
            raise self._diverged(f"the loss is {row['loss']}")
        if evaluates and self.evaluate is not None:
            self.average.eval()
            with torch.no_grad(), self._judging_samples():
                row |= {name: float(value) for name, value in self.evaluate(self.average).items()}
        row["seconds"] = round(self.seconds, 3)
        self.history.append(row)
        if self.folder is not None:
            with open(self.folder / "metrics.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
        return row

    @contextmanager
    def _judging_samples(self) -> Iterator[None]:
        """Samples that are not finite are the end of a training, not a wrong argument."""
        try:
            yield
        except NonFiniteError as error:
            if error.argument != "x":
                raise
            raise self._diverged(f"samples hold {error.got}") from error

    def _diverged(self, sign: str) -> FloatingPointError:
        return FloatingPointError(f"training diverged: at step {self.step} {sign}")

    @property
    def checkpoint(self) -> Path:
        """Where the newest checkpoint lies; there is never more than one."""
        if self.folder is None:
            raise ArgumentError("folder", None, "a folder to keep checkpoints in")
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Writes the checkpoint atomically; without a folder it does nothing on disk.

        Raises:
            FloatingPointError: The network's weights are not finite; an earlier checkpoint stays.
        """
        if not all(bool(torch.isfinite(w).all()) for w in self.network.parameters()):
            raise self._diverged("weights of the network are NaN or infinite")
        for drift in self.drifts:
            if isinstance(drift, WarmStart):
                drift.reset()
        if self.folder is None:
            return
        state = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        with atomic_path(self.checkpoint) as draft:
            torch.save(state, draft)

    def load(self) -> None:
        """Restores everything that `save` wrote.

        Raises:
            ArgumentError: The checkpoint belongs to another network or optimiser.
        """
        device = next(self.network.parameters()).device
        state = torch.load(self.checkpoint, map_location=device, weights_only=True)
        try:
            self.network.load_state_dict(state["network"])
            self.averaged.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            needs = "the network and optimiser that the checkpoint was written with"
            got = f"{type(self.network).__name__} for {self.checkpoint.name}"
            raise ArgumentError("network", got, needs) from error
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = state["history"]
