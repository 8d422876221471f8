"""Particle flows: the ordinary differential equation ẋ = V(x) followed by Euler steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from keodrift.checks import check_cloud, check_positive
from keodrift.drifts import Drift
from keodrift.errors import OptionError
from keodrift.fields import Field, saturated


@dataclass(frozen=True, eq=False)
class Flow:
    """The path of a particle cloud.

    Attributes:
        trajectory: Positions at the kept times, ``(T, …, N, d)``; the first is the start and the
            last is the end.
        times: Those times, ``(T,)``: steps done × step size.
        half_steps: Of each step's solve; empty where the drift solves nothing.
    """

    trajectory: Tensor
    times: Tensor
    half_steps: tuple[int, ...] = ()

    @property
    def final(self) -> Tensor:
        """Positions at the end, ``(…, N, d)``."""
        return self.trajectory[-1]


def simulate(
    drift: Callable[..., Tensor],
    x0: Tensor,
    y: Tensor,
    step_size: float,
    steps: int,
    *,
    keep: int = 1,
    warm_start: bool = True,
    progress: bool = False,
    **options: Any,
) -> Flow:
    """Moves particles along a drift: x ← x + step_size·V(x), ``steps`` times.

    Args:
        drift: Any drift, or a function ``(x, y) -> V``.
        x0: Particles at time 0, ``(…, N, d)``; not changed.
        y: Data, ``(…, M, d)``.
        step_size: Euler step η, without unit: at 1, T = barycentre replaces the particle outright.
        steps: Number of Euler steps.
        keep: Store every ``keep``-th position besides the first and the last.
        warm_start: Begin each fit where the last one ended, where the drift can. Solves are cheaper
            and the same to their tolerance; a critic goes on learning.
        progress: Show a progress bar on standard error.
        **options: Passed to the drift: weights, negatives, labels.

    Returns:
        The kept positions and their times.

    Raises:
        ArgumentError: ``x0`` is no cloud, ``step_size`` no positive number, or a count below 1.

    Reference:
        Sinkhorn drifting, eq. 92 and Figs. 1 and 5 (η = 0.1, 500 steps).

    Example:
        >>> flow = simulate(lambda x, y: y - x, torch.zeros(1, 2), torch.ones(1, 2), 0.5, 4)
        >>> flow.trajectory[:, 0, 0]
        tensor([0.0000, 0.5000, 0.7500, 0.8750, 0.9375])
    """
    check_positive("step_size", step_size)
    for name, count in (("steps", steps), ("keep", keep)):
        check_positive(name, count, integer=True)
    if "start" in options:
        needs = "none: a flow begins each fit itself, with warm_start=True at the last one"
        raise OptionError("start", type(options["start"]).__name__, needs)
    check_cloud("x0", x0)
    x = x0.detach().clone()
    kept, times, half_steps = [x], [0.0], []
    field: Field | None = None
    for count in trange(1, steps + 1, desc="flow", disable=not progress):
        with torch.no_grad():
            if isinstance(drift, Drift):
                field = drift.fit(x, y, start=field if warm_start else None, **options)
                x = saturated(x.double() + step_size * field().double(), x.dtype)
                half_steps += [field.half_steps] if field.couplings else []
            else:
                x = x + step_size * drift(x, y, **options)
        if count % keep == 0 or count == steps:
            kept.append(x)
            times.append(count * step_size)
    return Flow(torch.stack(kept), torch.tensor(times, dtype=torch.float64), tuple(half_steps))
