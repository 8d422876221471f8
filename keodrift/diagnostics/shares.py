"""Who holds whose mass: particles in their own repulsion, data without a particle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from keodrift.drifts.rkhs import KernelMasses
from keodrift.fields import Field, SoftmaxField, two_sides


def self_share(field: Field) -> Tensor:
    """Share of the model side's mass that each particle has itself: exp(β_i − C_ii/τ − ℓ_i).

    Args:
        field: A fitted field of two softmax sides.

    Returns:
        ``(…, N)``, 0 to 1; 0 with a mask, and where other draws repel in the particles' place.

    Raises:
        ArgumentError: It is not a field of two softmax sides.

    Example:
        >>> import torch, keodrift as kd
        >>> x = torch.tensor([[0.0], [9.0]])
        >>> self_share(kd.SinkhornDrift(tau=1.0).fit(x, x))
        tensor([1., 1.], dtype=torch.float64)
    """
    with torch.no_grad():
        return self_interaction(two_sides(field))[0]


def self_interaction(field: SoftmaxField) -> tuple[Tensor, Tensor]:
    """Shares of particles in their own mass ``(…, N)``, and how these change the drift.

    In a sum of kernels that is not normalised no point acts on itself.
    """
    x, side = field.particles, field.model
    n = x.shape[-2]
    lacking = max(0, n - side.points.shape[-2])  # of points that a particle could be
    padded = torch.nn.functional.pad(side.points, (0, 0, 0, lacking))
    bias = torch.nn.functional.pad(side.bias, (0, lacking), value=-torch.inf)[..., :n]
    own = (padded[..., :n, :] == x).all(-1) & ~torch.isneginf(bias)
    if field.mask_self or isinstance(field.masses, KernelMasses) or not bool(own.any()):
        return torch.zeros(x.shape[:-1], dtype=torch.float64, device=x.device), torch.zeros_like(x)
    logit = bias - side.cost.matched(x, x) / side.taus
    # Against the mass of all others, which is exact also where the share is next to 1.
    others = side.kernel(x, mask_self=True)
    share = torch.where(own, torch.sigmoid(logit - others.log_mass(side.bias)), 0.0)
    mass = torch.ones_like(share)
    if field.masses is not None:
        mass = field.masses(field, field.data.kernel(x), side.kernel(x), True)[1]
    return share, (mass * share)[..., None] * side.pull(x, field.velocity, others).double()


def unclaimed(field: SoftmaxField) -> Tensor:
    """Half the L1 error of the data's marginal under rows of equal weight, ``(…,)``."""
    n, m = field.particles.shape[-2], field.data.points.shape[-2]
    kernel = field.data.kernel(field.particles)
    rows = -math.log(n) - kernel.log_mass(field.data.bias)
    columns = (kernel.T.log_mass(rows) + field.data.bias).exp()
    return (columns - 1 / m).abs().sum(-1) / 2
