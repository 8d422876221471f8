"""Particle flows: the ordinary differential equation ẋ = V(x) followed by Euler steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from keodrift.drifts import Drift
from keodrift.errors import ArgumentError


@Drift.register
class WarmStart:
    """A drift that begins each fit at the potentials of the last one.

    Consecutive calls of a flow or of a training run see nearly the same clouds, so the last
    potential, carried over as a function, is nearly the answer. The answer is the same to the
    tolerance of the solve; only its price falls. What passes through unchanged: drifts without
    ``fit(…, start=)``, calls with labels, and a fixed number of ``iterations``, whose answer a
    warm start would change.

    Args:
        drift: The drift to wrap.

    Attributes:
        drift: The wrapped drift.
        field: The last fitted field, or None.

    Example:
        >>> import keodrift as kd
        >>> warm = WarmStart(kd.SinkhornDrift(tau=0.5))
        >>> for shift in (1.0, 1.1):
        ...     v = warm(torch.zeros(8, 2), torch.full((9, 2), shift))
        >>> v[0]
        tensor([1.1000, 1.1000])
    """

    def __init__(self, drift: Any) -> None:
        self.drift = drift
        self.field: Any = None
        fit = getattr(drift, "fit", None)
        self._accepts = (
            fit is not None
            and "start" in inspect.signature(fit).parameters
            and getattr(drift, "iterations", None) is None
        )

    def __call__(self, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        """V at the particles, ``(…, N, d)``; options as those of the wrapped drift."""
        options = {name: value for name, value in options.items() if value is not None}
        if not self._accepts or any(name.endswith("_labels") for name in options):
            return self.drift(x, y, **options)
        with torch.no_grad():
            self.field = self.drift.fit(x.detach(), y, start=self.field, **options)
            return self.field().detach()

    def reset(self) -> None:
        """Forgets the last field, so that the next fit starts cold."""
        self.field = None


@dataclass(frozen=True)
class Flow:
    """The path of a particle cloud.

    Attributes:
        trajectory: Positions at the kept times, ``(T, …, N, d)``; the first is the start and the
            last is the end.
        times: Those times, ``(T,)``: steps done × step size.
        iterations: Solver iterations of each step where the drift reports them, else empty.
    """

    trajectory: Tensor
    times: Tensor
    iterations: tuple[int, ...] = ()

    @property
    def final(self) -> Tensor:
        """Positions at the end, ``(…, N, d)``."""
        return self.trajectory[-1]


def simulate(
    drift: Callable[..., Tensor],
    x0: Tensor,
    y: Tensor,
    step: float,
    steps: int,
    *,
    keep: int = 1,
    warm_start: bool = True,
    progress: bool = False,
    **options: Any,
) -> Flow:
    """Moves particles along a drift: x ← x + step·V(x), ``steps`` times.

    Args:
        drift: Any drift, or a function ``(x, y) -> V``.
        x0: Particles at time 0, ``(…, N, d)``; not changed.
        y: Data, ``(…, M, d)``.
        step: Euler step η, without unit: at 1, T = barycentre replaces the particle outright.
        steps: Number of Euler steps.
        keep: Store every ``keep``-th position besides the first and the last.
        warm_start: Begin each solve at the last potential, where the drift can; cheaper, and the
            same to its tolerance.
        progress: Show a progress bar on standard error.
        **options: Passed to the drift: weights, negatives, labels.

    Returns:
        The kept positions and their times.

    Raises:
        ArgumentError: ``step`` is not positive and finite, or ``steps`` or ``keep`` is below 1.

    Reference:
        Sinkhorn drifting, eq. 92 and Figs. 1 and 5 (η = 0.1, 500 steps).

    Example:
        >>> flow = simulate(lambda x, y: y - x, torch.zeros(1, 2), torch.ones(1, 2), 0.5, 4)
        >>> flow.trajectory[:, 0, 0]
        tensor([0.0000, 0.5000, 0.7500, 0.8750, 0.9375])
    """
    if not (step > 0 and math.isfinite(step)):
        raise ArgumentError("step", step, "a positive finite number")
    if steps < 1:
        raise ArgumentError("steps", steps, "at least 1")
    if keep < 1:
        raise ArgumentError("keep", keep, "at least 1")
    move = WarmStart(drift)
    x = x0.detach().clone()
    kept, times, iterations = [x], [0.0], []
    for count in trange(1, steps + 1, desc="flow", disable=not progress):
        if not warm_start:
            move.reset()
        with torch.no_grad():
            x = x + step * move(x, y, **options)
        reported = getattr(move.field, "iterations", None)
        if reported is not None:
            iterations.append(int(torch.as_tensor(reported).max()))
        if count % keep == 0 or count == steps:
            kept.append(x)
            times.append(count * step)
    return Flow(torch.stack(kept), torch.tensor(times, dtype=torch.float64), tuple(iterations))
