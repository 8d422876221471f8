"""The Sinkhorn divergence S_τ = OT(q,p) − ½OT(q,q) − ½OT(p,p), differentiable through −aV."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from keodrift.drifts import SinkhornDrift
from keodrift.drifts.base import Problem
from keodrift.sinkhorn import transport_value


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    tau: float,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    cost: Any = "half_squared",
    tol: float = 1e-6,
    max_iterations: int = 2000,
    backend: str = "auto",
) -> Tensor:
    """Sinkhorn divergence between weighted clouds, debiased entropic transport.

    Its gradient in ``x`` is −a_i V_i with V the converged Sinkhorn drift, and likewise in ``y``;
    weights are constants. The gradient is as exact as ``tol``, and is not differentiable again.

    Args:
        x: Particles, ``(…, N, d)``.
        y: Data, ``(…, M, d)``.
        tau: Temperature, in the unit of the cost (GeomLoss: blur²).
        x_weights: Weights of x, ``(…, N)``; uniform by default.
        y_weights: Weights of y, ``(…, M)``; uniform by default.
        cost: Ground cost; ½‖x−y‖² by default.
        tol: L1 marginal error of the three couplings.
        max_iterations: Cap on the half-steps of each.
        backend: Engine; picked by default.

    Returns:
        ``(…,)``, a scalar without batch axes, in the unit of the cost.

    Raises:
        ArgumentError: An input is not what it should be; see `keodrift.errors`.

    Source: Feydy et al. (2019), eq. 3; "Sinkhorn drifting", arXiv 2603.12366, eq. 10.

    Example:
        >>> import torch, keodrift as kd
        >>> x = torch.zeros(3, 2, requires_grad=True)
        >>> kd.sinkhorn_divergence(x, torch.ones(3, 2), tau=0.1).item()
        1.0
    """
    drift = SinkhornDrift(
        tau,
        cost=cost,
        tol=tol,
        max_iterations=max_iterations,
        velocity="gradient",
        backend=backend,
    )
    return _Divergence.apply(x, y, drift, x_weights, y_weights)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        drift: SinkhornDrift,
        a: Tensor | None,
        b: Tensor | None,
    ) -> Tensor:
        there = drift.problem(x, y, a, b, None, None)
        back = Problem(there.y, there.x, there.y, there.b, there.a, there.b, there.dtype)
        cross = drift.couple(there.x, there.y, there.a, there.b)
        selves = [drift.couple(p.x, p.x, p.a, p.a, symmetric=True) for p in (there, back)]
        values = [transport_value(coupling, drift.tau) for coupling in (cross, *selves)]
        # The same potentials read from either side give the drift of either cloud.
        biases = (cross.bias, there.a.log() + cross.f)
        slopes = [
            -p.a[..., None].to(p.x.dtype) * drift.field(p, bias, own.bias)() if needed else None
            for p, bias, own, needed in zip(
                (there, back), biases, selves, (x.requires_grad, y.requires_grad), strict=True
            )
        ]
        ctx.save_for_backward(*slopes)
        return (values[0] - (values[1] + values[2]) / 2).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slopes = (None if s is None else grad[..., None, None] * s for s in ctx.saved_tensors)
        return (*slopes, None, None, None)
