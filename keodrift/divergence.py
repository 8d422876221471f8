"""The Sinkhorn divergence S_τ = OT(q,p) − ½OT(q,q) − ½OT(p,p), differentiable through −aV."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from keodrift import checks
from keodrift.costs import Cost, as_cost, check_cost, check_temperature
from keodrift.drifts.clouds import Cloud
from keodrift.fields import saturated
from keodrift.reductions import Engine, check_backend
from keodrift.transport import Clusters, Coupling, EntropicProblem, Sinkhorn, coarse


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    tau: float,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    cost: Any = "half_squared",
    tol: float | None = None,
    max_half_steps: int = 2000,
    backend: str | Engine = "auto",
    reach: float | None = None,
) -> Tensor:
    """Sinkhorn divergence between weighted clouds, debiased entropic transport.

    Its gradient in ``x`` is −a_i V_i, where the cost is symmetric, with V the converged Sinkhorn
    drift and its ``velocity="gradient"`` (with a ``reach`` and its ``masses="gradient"``), and
    likewise in ``y``; weights are constants. It is as exact as ``tol``, and is not differentiable
    again.

    Args:
        x: Particles, ``(…, N, d)``.
        y: Data, ``(…, M, d)``.
        tau: Temperature, in the unit of the cost (GeomLoss: blur²).
        x_weights: Weights of x, ``(…, N)``; uniform by default.
        y_weights: Weights of y, ``(…, M)``; uniform by default.
        cost: Ground cost; ½‖x−y‖² by default.
        tol: L1 marginal error of the three couplings; by default 1e-6, in single precision 1e-4,
            which cannot tell that much. The value is in error by its square alone.
        max_half_steps: Cap on the half-steps of each.
        backend: Engine; picked by default.
        reach: ρ in the unit of the cost (GeomLoss: reach²): the couplings leave their marginals at
            the price ρ·KL; None, the default, holds them exactly.

    Returns:
        ``(…,)``, a scalar without batch axes, in the unit of the cost.

    Raises:
        ArgumentError: An input is not what it should be; see `keodrift.errors`.

    Source: Feydy et al. (2019), eq. 3; "Sinkhorn drifting", arXiv 2603.12366, eq. 10. Relaxed:
    Séjourné et al. (2019), "Sinkhorn divergences for unbalanced optimal transport", definition 7.

    Example:
        >>> import torch, keodrift as kd
        >>> x = torch.zeros(3, 2, requires_grad=True)
        >>> kd.sinkhorn_divergence(x, torch.ones(3, 2), tau=0.1).item()
        1.0
    """
    cost, tau, reach = as_cost(cost), checks.check_tau(tau), checks.check_reach(reach)
    check_backend(backend)
    clouds = (
        Cloud.checked("x", x, x_weights, None, x),
        Cloud.checked("y", y, y_weights, None, x),
    )
    points = [cloud.points for cloud in clouds]
    if tol is None:
        tol = 1e-6 if points[0].dtype == torch.float64 else 1e-4
    solver = Sinkhorn(tol=tol, max_half_steps=max_half_steps)
    cost = check_cost(cost, *points)
    check_temperature(tau, cost, *points)
    return _Divergence.apply(x, y, clouds, (cost, tau, backend), reach, solver)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        clouds: tuple[Cloud, Cloud],
        how: tuple[Cost, float, str | Engine],
        reach: float | None,
        solver: Sinkhorn,
    ) -> Tensor:
        (p, a), (q, b) = ((cloud.points, cloud.shares) for cloud in clouds)
        start = partial(coarse, clusters=Clusters())
        cross = solver.couple(EntropicProblem(p, q, a, b, *how, reach=reach), start)
        symmetric = bool(how[0].symmetric)
        selves = [
            solver.couple(
                EntropicProblem(z, z, w, w, *how, symmetric=symmetric, reach=reach), start
            )
            for z, w in ((p, a), (q, b))
        ]
        slopes = [
            _weighted(w, slope(cross) - _self_slope(own)) if needed else None
            for w, slope, own, needed in (
                (a, _row_slope, selves[0], x.requires_grad),
                (b, _column_slope, selves[1], y.requires_grad),
            )
        ]
        ctx.save_for_backward(*slopes)
        return saturated(cross.value - (selves[0].value + selves[1].value) / 2, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slopes = (
            None if s is None else saturated(grad[..., None, None] * s, grad.dtype)
            for s in ctx.saved_tensors
        )
        return (*slopes, None, None, None, None)


def _weighted(weights: Tensor, slopes: Tensor) -> Tensor:
    """Slopes by weights; 0 for points without weight, however much mass they might keep."""
    weighted = weights[..., None].to(slopes.dtype) * slopes
    return weighted.masked_fill(weights[..., None] == 0, 0)


def _row_slope(coupling: Coupling) -> Tensor:
    """Gradient of OT_τ in the rows' points, for weights of 1."""
    slope = coupling.problem.kernel.mean_cost_gradient(coupling.bias)
    return coupling.kept[0][..., None].to(slope.dtype) * slope


def _column_slope(coupling: Coupling) -> Tensor:
    """The same in the columns' points: the potentials read from the other side."""
    bias = coupling.problem.a.log() + coupling.f
    slope = coupling.problem.kernel.T.mean_cost_gradient(bias)
    return coupling.kept[1][..., None].to(slope.dtype) * slope


def _self_slope(coupling: Coupling) -> Tensor:
    """Half the gradient of OT_τ(q, q), in which every point is a row and a column."""
    if coupling.problem.symmetric:
        return _row_slope(coupling)
    return (_row_slope(coupling) + _column_slope(coupling)) / 2
