"""Slopes of a vector field at points: its Jacobian, how far that is from a gradient's, its trace.

A field that is a gradient has a symmetric Jacobian everywhere; one that is not follows no energy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keodrift.checks import check_cloud
from keodrift.errors import ShapeError
from keodrift.precision import full_precision

VectorField = Callable[[Tensor], Tensor]
POINTS = 256  # at a time: a graph may hold all their pairs with the clouds of the field


def jacobian(field: VectorField, z: Tensor) -> Tensor:
    """The Jacobian ∂V_k/∂z_l at every point, by one backward pass a dimension, in linear memory.

    Args:
        field: A fitted field, or any differentiable function of points that takes each by itself.
        z: Points, ``(…, K, d)``.

    Returns:
        ``(…, K, d, d)``, without a graph; the field's component comes first. Without unit.

    Raises:
        ArgumentError: ``z`` is no cloud, or the field does not return one vector a point.

    Example:
        >>> jacobian(lambda z: z @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.zeros(1, 2))
        tensor([[[ 0., -1.],
                 [ 1.,  0.]]])
    """
    check_cloud("z", z)
    return torch.cat([_jacobian(field, part) for part in z.split(POINTS, -2)], -3)


def curl(field: VectorField, z: Tensor) -> Tensor:
    """How far a field is from a gradient: ‖J − Jᵀ‖/‖J + Jᵀ‖ at every point, Frobenius norms.

    Args:
        field: As for `jacobian`.
        z: Points, ``(…, K, d)``.

    Returns:
        ``(…, K)``, without unit: 0 where the Jacobian is symmetric (to rounding, which is all there
        is where the field hardly changes), ∞ where it only rotates.

    Raises:
        ArgumentError: As `jacobian`.

    Example:
        >>> curl(lambda z: z @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), torch.zeros(1, 2))
        tensor([1.])
    """
    slopes = jacobian(field, z)
    skew, even = ((slopes + sign * slopes.mT).norm(dim=(-1, -2)) for sign in (-1, 1))
    return torch.where(skew == 0, skew, skew / even)


def expansion(field: VectorField, z: Tensor) -> Tensor:
    """The divergence Σ_k ∂V_k/∂z_k: the rate at which a small volume of particles grows.

    Args:
        field: As for `jacobian`.
        z: Points, ``(…, K, d)``.

    Returns:
        ``(…, K)``, without unit: positive where particles spread, negative where they gather.

    Raises:
        ArgumentError: As `jacobian`.

    Example:
        >>> expansion(lambda z: -z, torch.zeros(1, 3))
        tensor([-3.])
    """
    return jacobian(field, z).diagonal(dim1=-2, dim2=-1).sum(-1)


def _jacobian(field: VectorField, z: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad(), full_precision(z.device.type):
        z = z.detach().clone().requires_grad_()
        v = field(z)
        if v.shape != z.shape:
            raise ShapeError("field", f"values of shape {tuple(v.shape)}", f"{tuple(z.shape)}")
        if not v.requires_grad:  # a constant
            return torch.zeros(*z.shape, z.shape[-1], dtype=v.dtype, device=z.device)
        rows = [
            torch.autograd.grad(part.sum(), z, retain_graph=True, materialize_grads=True)[0]
            for part in v.unbind(-1)
        ]
    return torch.stack(rows, -2)
