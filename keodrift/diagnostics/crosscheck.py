"""A Sinkhorn field and its divergence beside what GeomLoss finds for the same clouds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from keodrift.checks import check_positive
from keodrift.costs import check_cost
from keodrift.divergence import sinkhorn_divergence
from keodrift.drifts import SinkhornDrift
from keodrift.drifts.clouds import Cloud
from keodrift.errors import MissingDependencyError, OptionError, ShapeError
from keodrift.reductions.engines.keops.compiler import session
from keodrift.transport import EntropicProblem

SPAN = 8  # GeomLoss anneals from at least so many blurs; at large τ it would hardly iterate


@dataclass(frozen=True)
class Crosscheck:
    """How far a drift and GeomLoss are apart, and how far GeomLoss is from its own limit.

    Attributes:
        drift: Relative L2 difference of a·V and minus GeomLoss' gradient.
        value: Relative difference of the Sinkhorn divergences.
        drift_left: By how much GeomLoss' gradient moved when its annealing steps were halved. What
            ``drift`` has beyond a few times that, and beyond ``tol``, is a disagreement; where
            mass must cross a gap, GeomLoss converges so slowly that this says too little.
        value_left: The same of its value.
        marginal_error: Of the drift's own solve.
        engines: What reduced its data and model side.
        points: N and M that were compared.
    """

    drift: float
    value: float
    drift_left: float
    value_left: float
    marginal_error: float
    engines: tuple[str, ...]
    points: tuple[int, int]


def crosscheck(
    drift: SinkhornDrift,
    x: Tensor,
    y: Tensor,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    points: int | None = 1000,
    scaling: float = 0.99,
    progress: bool = False,
) -> Crosscheck:
    """Compares a converged Sinkhorn drift with the gradient of GeomLoss' Sinkhorn divergence.

    GeomLoss runs in float64, from 5 000² pairs on without storing them: in d ≤ 3 by its truncated
    multiscale scheme, elsewhere by visiting all pairs some hundred times.

    Args:
        drift: The drift, with the engine that is to be held to GeomLoss. Where C is no multiple of
            ½‖x−y‖² it needs ``velocity="gradient"``, with a reach ``masses="gradient"``: V is no
            gradient otherwise.
        x: Particles, ``(N, d)``.
        y: Data, ``(M, d)``.
        x_weights: Weights of x, ``(N,)``; uniform by default.
        y_weights: Weights of y, ``(M,)``; uniform by default.
        points: How many points of a cloud are compared at most, taken at even steps; None: all.
        scaling: Ratio of two successive scales of GeomLoss' annealing, in (0, 1); its error and
            the inverse of its time go with 1 − scaling.
        progress: Shows a bar over the solves.

    Raises:
        OptionError: The drift, or a cost that GeomLoss has not; or a number out of range.
        ArgumentError: Clouds or weights are not what they should be; see `keodrift.errors`.
        MissingDependencyError: GeomLoss is not installed.

    Source: Feydy et al. (2019), "Interpolating between optimal transport and MMD using Sinkhorn
    divergences".

    Example:
        >>> import torch, keodrift as kd
        >>> x, y = torch.randn(20, 2), torch.randn(30, 2) + 1
        >>> check = kd.crosscheck(kd.SinkhornDrift(tau=1.0), x, y, scaling=0.95)
        >>> check.drift < 0.05, check.points
        (True, (20, 30))
    """
    if points is not None:
        check_positive("points", points, integer=True)
    if not 0 < scaling < 1:
        raise OptionError("scaling", repr(scaling), "a number between 0 and 1")
    clouds = Cloud.checked("x", x, x_weights, None, x), Cloud.checked("y", y, y_weights, None, x)
    if x.dim() != 2:
        raise ShapeError("x", f"shape {tuple(x.shape)}", "one problem, (N, d)")
    (x, a), (y, b) = (_some(cloud, points) for cloud in clouds)
    p, factor = _power(drift, x, y)
    loss = _samples_loss()
    bar = tqdm(total=3, desc="cross-check", unit="solve", disable=not progress)
    with bar:
        field = drift.fit(x, y, x_weights=a, y_weights=b)
        problem, v = field.couplings[0].problem, field().double()
        value = sinkhorn_divergence(
            x,
            y,
            float(problem.tau),
            x_weights=a,
            y_weights=b,
            cost=drift.cost,
            tol=drift.tol,
            max_half_steps=drift.max_half_steps,
            backend=drift.backend,
            reach=None if problem.reach is None else float(problem.reach),
        )
        bar.update()
        found = []
        for ratio in (scaling**2, scaling):
            found.append(_theirs(loss, problem, p, factor, ratio))
            bar.update()
    (rough, rough_slope), (theirs, slope) = found
    unit = factor if drift.velocity == "barycentric" else 1.0
    return Crosscheck(
        drift=_apart(-unit * problem.a[:, None] * v, slope),
        value=_apart(value, theirs),
        drift_left=_apart(rough_slope, slope),
        value_left=_apart(rough, theirs),
        marginal_error=float(max(c.marginal_error for c in field.couplings)),
        engines=tuple(c.problem.kernel.engine.name for c in field.couplings),
        points=(len(x), len(y)),
    )


def _some(cloud: Cloud, points: int | None) -> tuple[Tensor, Tensor]:
    """At most so many points of a cloud, at even steps, and their weights."""
    step = 1 if points is None else -(-len(cloud.points) // points)
    return cloud.points[::step], cloud.weights[::step]


def _power(drift: SinkhornDrift, x: Tensor, y: Tensor) -> tuple[int, float]:
    """The p and c such that the cost is c/p·‖x−y‖^p, if V is then what GeomLoss' gradient is.

    Raises:
        OptionError: It is not.
    """
    if not isinstance(drift, SinkhornDrift):
        raise OptionError("drift", type(drift).__name__, "a SinkhornDrift")
    if drift.half_steps is not None or drift.mask_self:
        got = f"half_steps={drift.half_steps}, mask_self={drift.mask_self}"
        raise OptionError("drift", got, "half_steps=None and mask_self=False, a converged solve")
    if drift.reach is not None and drift.masses != "gradient":
        raise OptionError("drift", "a reach with masses='unit'", "masses='gradient'")
    cost = check_cost(drift.cost, x, y)
    bent = cost.curvature is None or cost.lift is not None
    if cost.curvature is not None:
        p, factor = 2, cost.curvature
    elif cost.radial is not None and cost.degree == 1:
        p, factor = 1, float(cost.radial(1.0))
    else:
        needs = "a multiple of ½‖x−y‖² or of ‖x−y‖, of the points or of a map of them"
        raise OptionError("drift", f"the cost '{cost.name}'", f"one that GeomLoss has: {needs}")
    if bent and drift.velocity != "gradient":
        raise OptionError("drift", f"velocity={drift.velocity!r}", "velocity='gradient'")
    return p, factor


def _samples_loss() -> Callable[..., Any]:
    """GeomLoss' loss, imported without the messages of what it imports."""
    try:
        with session("GeomLoss"):
            from geomloss import SamplesLoss
    except ImportError as error:
        raise MissingDependencyError("geomloss", "the cross-check", "bench") from error
    return SamplesLoss


def _theirs(
    loss: Callable[..., Any], problem: EntropicProblem, p: int, factor: float, scaling: float
) -> tuple[Tensor, Tensor]:
    """The divergence in the unit of the cost, and its gradient in x ``(N, d)``, in float64."""
    tau, d = float(problem.tau) / factor, problem.x.shape[-1]
    rho = None if problem.reach is None else float(problem.reach) / factor
    lift = problem.cost.lift or (lambda points: points)
    # GeomLoss leaves gradients enabled; copies, because inference mode's tensors have no graph.
    with session(f"GeomLoss {p} {d}"), torch.inference_mode(False), torch.enable_grad():
        x, y, a, b = (
            z.to(torch.float64, copy=True) for z in (problem.x, problem.y, problem.a, problem.b)
        )
        lifted = lift(x.requires_grad_()), lift(y)
        both, blur = torch.cat(lifted).detach(), tau ** (1 / p)
        divergence = loss(
            "sinkhorn",
            p=p,
            blur=blur,
            reach=None if rho is None else rho ** (1 / p),
            diameter=max(float((both.amax(0) - both.amin(0)).norm()), SPAN * blur),
            scaling=scaling,
        )
        value = divergence(a, lifted[0], b, lifted[1])
        (slope,) = torch.autograd.grad(value, x)
    if rho is not None:  # which scales values by ρ + τ/2, and their slopes by that as well
        slope = slope * ((rho + tau) / (rho + tau / 2))
    return factor * value.detach(), factor * slope


def _apart(found: Tensor, expected: Tensor) -> float:
    """Relative L2 difference."""
    size = expected.double().norm().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found.double() - expected.double()).norm() / size)
