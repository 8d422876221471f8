"""Training a one-step network: one loop, exact resume, everything explicit.

At each step the network makes a batch x, the objective says what its points should be, and the
optimiser moves the weights. Randomness comes from one `torch.Generator` only, so that a run that
was cut off and resumed ends with the same bits as one that was not; torch's own random state, which
layers like dropout draw from, is seeded by it at every step and afterwards is what it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keodrift.checks import check_choice, check_positive
from keodrift.drifts import Drift
from keodrift.errors import ArgumentError, DivergedError, DtypeError, OptionError, RunError
from keodrift.files import claimed
from keodrift.training.batches import Batch, BatchSource
from keodrift.training.interrupts import held_back
from keodrift.training.log import Log, Reporting
from keodrift.training.objective import check_samples
from keodrift.training.state import TrainingState, average_of, checkpoints, own_draws

# A hundred steps of memory: longer, the average blurs modes that trade mass.
EMA_DECAY = 0.99


class Trainer:
    """The training loop with its state.

    Args:
        network: What is trained, ``network(*batch.inputs) -> (N, d)``.
        batches: Makes one `Batch` from the random generator.
        objective: The loss of samples and a batch, such as ``Objective(drift)``; what it reports
            (`Reporting`) enters the log.
        optimizer: A torch optimiser over the network's parameters, of those that take a gradient
            and step, as all do but ``LBFGS``.
        generator: The run's only source of randomness.
        scheduler: A scheduler of its learning rate by steps, stepped once a step.
        ema: Decay of the averaged weights in `average`; 0 makes them follow the network. It grows
            towards this, min(ema, (1 + t)/(10 + t)) at step t, so that the average of a short run
            is not one of its beginning.
        clip: Largest gradient norm, or None.
        precision: ``"full"``, or ``"bfloat16"``: the network's products in bfloat16 (autocast),
            faster where the processor has them. Weights, samples, drift and loss stay as they are.
        evaluate: Called with the averaged network every ``evaluate_every`` steps; returns
            numbers for the log. It must bring its own random generator.
        evaluate_every: Steps between evaluations.
        log_every: Steps between lines of the log.
        folder: Where ``metrics.jsonl``, the last two checkpoints and, if the training diverges,
            ``diverged.pt`` go; None writes nothing.
        checkpoint_every: Steps between checkpoints; one is written at the end in any case.
        progress: Show a progress bar on standard error.

    Attributes:
        state: All that the run has become: network, optimiser, step; see `TrainingState`.

    Raises:
        ArgumentError: A number is out of range, the precision unknown, the objective a drift,
            weights to be trained in half precision, or the optimiser or its scheduler is not of
            this network, or cannot be stepped by a gradient alone.

    Reference:
        Deng et al., the drifting loss; EMA weights as in the MNIST protocol of Sinkhorn drifting.

    Example:
        >>> import keodrift as kd
        >>> from keodrift.networks import MLP, draw_noise
        >>> from keodrift.training import Objective
        >>> network = MLP()
        >>> def batches(generator):
        ...     return Batch((draw_noise(network, 64, generator),), torch.ones(64, 2))
        >>> trainer = Trainer(network, batches, Objective(kd.OneSidedDrift(0.1)),
        ...     torch.optim.Adam(network.parameters()), torch.Generator().manual_seed(0))
        >>> trainer.run(2)[-1]["step"]
        2
    """

    def __init__(
        self,
        network: nn.Module,
        batches: BatchSource,
        objective: Callable[[Tensor, Batch], Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        *,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        ema: float = EMA_DECAY,
        clip: float | None = None,
        precision: str = "full",
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        evaluate_every: int = 100,
        log_every: int = 10,
        folder: str | Path | None = None,
        checkpoint_every: int = 1000,
        progress: bool = False,
    ) -> None:
        if isinstance(objective, Drift) or not callable(objective):
            raise OptionError("objective", repr(objective), "a loss, such as Objective(drift)")
        decay: Any = ema
        if not isinstance(decay, Real) or not 0 <= float(decay) < 1:
            raise ArgumentError("ema", ema, "a decay in [0, 1)")
        if clip is not None:
            check_positive("clip", clip)
        check_choice("precision", precision, ("full", "bfloat16"))
        check_positive("evaluate_every", evaluate_every, integer=True)
        check_positive("log_every", log_every, integer=True)
        check_positive("checkpoint_every", checkpoint_every, integer=True)
        for weight in network.parameters():
            if weight.requires_grad and weight.dtype in (torch.float16, torch.bfloat16):
                needs = "weights in float32, whose average moves; precision='bfloat16' is as fast"
                raise DtypeError("network", f"weights in {weight.dtype}", needs)
        _check_optimizer(network, optimizer, scheduler)
        self.clip, self.precision = clip, precision
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.progress = progress
        self.folder = None if folder is None else Path(folder)
        average = average_of(network, ema)
        self.state = TrainingState(
            network, average, optimizer, scheduler, batches, objective, generator
        )

    @property
    def objective(self) -> Callable[[Tensor, Batch], Tensor]:
        """The loss of samples and a batch; another one may take its place between runs."""
        return self.state.objective

    @objective.setter
    def objective(self, objective: Callable[[Tensor, Batch], Tensor]) -> None:
        self.state.objective = objective

    @property
    def average(self) -> nn.Module:
        """The network with averaged weights; use it to sample."""
        return self.state.ema.module

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of the log.

        Each holds ``step``, ``loss``, ``seconds``, ``gradient_norm`` before any clipping,
        ``average_distance`` (of the averaged weights from the network's, relative to these), what
        the objective reports, and what ``evaluate`` gave.
        """
        return self.state.history

    def check(self, steps: int, *, resume: bool = False) -> None:
        """Refuses what `run` cannot do, before anything is written.

        Raises:
            ArgumentError: ``steps`` is not a positive integer or beyond the end of the scheduler,
                ``resume`` has no folder, or the folder holds the checkpoint of another run.
        """
        check_positive("steps", steps, integer=True)
        end = getattr(self.state.scheduler, "total_steps", None)  # of one cycle, say
        if end is not None and steps > end:
            raise OptionError("steps", steps, f"{end} at most, where the scheduler ends")
        if self.folder is None:
            if resume:
                raise ArgumentError("resume", True, "a folder that holds the checkpoint")
        elif not resume and self.step == 0 and checkpoints(self.folder):
            got = f"{self.folder}, which holds a checkpoint"
            raise OptionError("folder", got, "resume=True, or another folder")

    def run(self, steps: int, *, resume: bool = False) -> list[dict[str, float]]:
        """Trains until ``steps`` steps are done in all.

        Args:
            steps: Total number of steps, those before a resume included.
            resume: Continue from the folder's newest intact checkpoint if there is one.

        Returns:
            The history.

        Raises:
            ArgumentError: As `check`; the checkpoint is of another network; another process trains
                in the folder; or a state is more than a checkpoint gives back.
            DivergedError: The training diverged; what was kept before stays. The message names
                the file that holds the batch it diverged on, see `TrainingState.save_diverged`.
        """
        self.check(steps, resume=resume)
        if self.folder is None:
            return self._run(steps)
        self.state.serialised()  # or the first checkpoint would end the run
        with claimed(self.folder, "folder"):
            if resume:
                self.state.resume(self.folder)
            return self._run(steps)

    def _run(self, steps: int) -> list[dict[str, float]]:
        state = self.state
        begun = time.perf_counter() - state.seconds
        with (
            Log(
                state.history, self.folder, start=state.step, steps=steps, progress=self.progress
            ) as log,
            own_draws(state.generator, state.network) as seed_draws,
            held_back() as interrupted,
            torch.enable_grad(),
        ):
            if not state.network.training:  # which would wake layers that are frozen in it
                state.network.train()
            while state.step < steps:
                seed_draws(state.step)
                batch = state.batches(state.generator)
                try:
                    loss, gradient = self._advance(batch)
                    log.bar.update()
                    state.seconds = time.perf_counter() - begun
                    last = state.step == steps
                    evaluates = state.step % self.evaluate_every == 0 and self.evaluate is not None
                    if evaluates or last:
                        self._check_average(batch)
                    if evaluates or last or state.step % self.log_every == 0:
                        row = self._row(loss, gradient)
                        log.write(self._evaluated(log, row) | row if evaluates else row)
                    if last or interrupted.is_set() or state.step % self.checkpoint_every == 0:
                        self._keep()
                except DivergedError as error:
                    raise self._kept(error, batch) from error
                if interrupted.is_set():
                    raise KeyboardInterrupt
        return state.history

    def _keep(self) -> None:
        if self.folder is None:
            self.state.check_finite()
        else:
            self.state.save(self.folder / "checkpoint.pt")

    def _kept(self, error: DivergedError, batch: Batch) -> DivergedError:
        """The error to tell, and where the batch behind it is."""
        sign = error.sign
        if self.folder is not None:
            path = self.folder / "diverged.pt"
            with suppress(RunError):  # what ended the run is the error to be told
                self.state.save_diverged(path, batch, repr(self.objective))
                sign += f"; the batch is kept in {path}"
        return DivergedError(sign, self.step)

    def _advance(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step; its loss and the norm of its gradient. Where they are not finite, no step."""
        state = self.state
        x = self._samples(state.network, batch.inputs)
        if batch.model_inputs:
            with torch.no_grad():
                drawn = self._samples(state.network, batch.model_inputs)
                check_samples(drawn)
            batch = replace(batch, options={**batch.options, "model": drawn})
        loss = self.objective(x, batch)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        bound = math.inf if self.clip is None else self.clip
        gradient = nn.utils.clip_grad_norm_(state.network.parameters(), bound)
        state.step += 1
        # Once a step is read from the device, as the checks of the clouds do too: an optimiser
        # that was given one gradient that is not finite has lost its weights.
        if not bool(torch.isfinite(loss) & torch.isfinite(gradient)):
            raise DivergedError(
                f"the loss is {float(loss.detach())}, its gradient's norm {float(gradient)}"
            )
        state.optimizer.step()
        if state.scheduler is not None:
            state.scheduler.step()
        state.ema.update_parameters(state.network)
        return loss.detach(), gradient

    def _samples(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        if self.precision == "full":
            return network(*inputs)
        weights = next(network.parameters())
        with torch.autocast(weights.device.type, torch.bfloat16):
            return network(*inputs).to(weights.dtype)

    @torch.no_grad()
    def _check_average(self, batch: Batch) -> None:
        """Tells a divergence from a mistake of ``evaluate``, which sees such samples next."""
        self.average.eval()
        check_samples(self._samples(self.average, batch.inputs))

    @torch.no_grad()
    def _evaluated(self, log: Log, row: dict[str, float]) -> dict[str, float]:
        evaluate: Any = self.evaluate
        try:
            return {name: float(value) for name, value in evaluate(self.average).items()}
        except DivergedError:
            raise
        except Exception:  # a mistake there is no reason to lose what was trained
            log.write(row)
            self._keep()
            raise

    @torch.no_grad()
    def _row(self, loss: Tensor, gradient: Tensor) -> dict[str, float]:
        row: dict[str, float] = {"step": self.step, "loss": float(loss)}
        row["gradient_norm"] = float(gradient)
        weights, averaged = (
            nn.utils.parameters_to_vector(network.parameters())
            for network in (self.state.network, self.average)
        )
        length = weights.norm().clamp_min(torch.finfo(weights.dtype).tiny)
        row["average_distance"] = float((averaged - weights).norm() / length)
        told: Mapping[str, float] = (
            self.objective.report() if isinstance(self.objective, Reporting) else {}
        )
        row |= {name: float(value) for name, value in told.items()}
        row["seconds"] = round(self.state.seconds, 3)
        return row


def _check_optimizer(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
) -> None:
    """Refuses what would train nothing, or stop at its first step."""
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if not any(id(one) in held for one in network.parameters() if one.requires_grad):
        raise OptionError("optimizer", "no weight of the network that learns", "its parameters")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise OptionError("optimizer", "LBFGS, which needs several losses a step", "another one")
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise OptionError("scheduler", "ReduceLROnPlateau, which needs a score", "another one")
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise OptionError("scheduler", "one of another optimizer", "one of this optimizer")
