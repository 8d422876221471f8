"""The temperature by how many neighbours a particle averages over, instead of by its unit."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from keodrift.checks import check_cloud, check_positive
from keodrift.drifts import SoftmaxDrift
from keodrift.errors import ArgumentError, ShapeError, TemperatureError
from keodrift.fields import Field, Side, two_sides
from keodrift.reductions import mean_cost

# By how much a logit may move for a central difference of log-masses, whose error is its square.
STEP = 1e-2
HALVINGS = 40
REACHED = "a number that some temperature reaches"


def row_entropy(side: Side, z: Tensor) -> Tensor:
    """Entropy H_i = −Σ_j P_ij log P_ij of the softmax of one side at queries, ``(…, N)``.

    With P_ij ∝ exp(β_j − C_ij/τ) it is ℓ − Σ_j P_ij β_j + Σ_j P_ij C_ij/τ, in float64. The mean of
    a quadratic cost is an average of y and ½‖y‖²; that of another one is the slope of the log-mass
    in −1/τ, between temperatures so near that hardly a logit moves by more than `STEP`.

    Args:
        side: A cloud with its bias.
        z: Queries, ``(…, N, d)``.
    """
    side, z = replace(side, points=side.points.double()), z.double()
    kernel, cost = side.kernel(z), side.cost
    mass = kernel.log_mass(side.bias)
    level = side.bias.amax(-1, keepdim=True)
    # Atoms of weight 0 have no share; any finite value does for them.
    biases = (side.bias - level).clamp_min(-1e30)[..., None]
    if cost.curvature is not None:
        y, z = cost.lifted(side.points), cost.lifted(z)
        origin = y.mean(-2, keepdim=True)
        y, z = y - origin, z - origin
        means = kernel.barycentre(side.bias, torch.cat([biases, y, _half_square(y)], -1))
        bias, towards = means[..., 0], means[..., 1:-1]
        logit = _half_square(z)[..., 0] - (z * towards).sum(-1) + means[..., -1]
        logit = logit * cost.curvature / side.taus
    else:
        bias = kernel.barycentre(side.bias, biases)[..., 0]
        widest = float((mean_cost(z, side.points, cost, 512).abs() / side.tau).max())
        step = STEP / (1 + 8 * widest)
        colder, hotter = (
            replace(side, tau=side.tau / factor).kernel(z).log_mass(side.bias)
            for factor in (1 + step, 1 - step)
        )
        logit = (hotter - colder) / (2 * step)
    most = math.log(side.points.shape[-2])
    return (mass - (bias + level) + logit).clamp(0, most)


def _half_square(points: Tensor) -> Tensor:
    return points.square().sum(-1, keepdim=True) / 2


def effective_neighbours(field: Field) -> Tensor:
    """How many data points a particle effectively averages over: exp of the mean row entropy.

    Args:
        field: A fitted field; the couplings are taken at its particles.

    Returns:
        ``(…,)``, between 1 and the number of data points.

    Raises:
        ArgumentError: It is not a field of two softmax sides.

    Example:
        >>> import torch, keodrift as kd
        >>> x, y = torch.zeros(3, 2), torch.eye(2)
        >>> round(float(effective_neighbours(kd.OneSidedDrift(tau=1.0).fit(x, y))), 3)
        2.0
    """
    sides = two_sides(field)
    return row_entropy(sides.data, sides.particles).mean(-1).exp()


def tau_for_neighbours(
    drift: SoftmaxDrift, x: Tensor, y: Tensor, neighbours: float, *, rtol: float = 0.02
) -> float:
    """The temperature at which a drift averages over a wished number of data points.

    Args:
        drift: A drift of any temperature, such as ``SinkhornDrift(tau=1.0)``; its own is where the
            search begins.
        x: Particles, ``(N, d)``.
        y: Data, ``(M, d)``.
        neighbours: Wished effective number, above 1 and below M.
        rtol: Relative error of that number at which the search ends.

    Returns:
        τ, in the unit of the drift's cost, or in mean costs for one that is relative.

    Raises:
        ArgumentError: The drift is none of two softmax sides, ``neighbours`` is not between 1 and
            M, no temperature has it, or a cloud is not what it should be.

    Example:
        >>> import torch, keodrift as kd
        >>> x = torch.linspace(0, 1, 50)[:, None]
        >>> tau = tau_for_neighbours(kd.OneSidedDrift(tau=1.0), x, x, 5.0)
        >>> 1e-4 < tau < 1e-2
        True
    """
    if not isinstance(drift, SoftmaxDrift):
        raise ArgumentError("drift", type(drift).__name__, "a drift of two softmax sides")
    check_positive("rtol", rtol)
    check_positive("neighbours", neighbours)
    check_cloud("x", x)
    check_cloud("y", y, x)
    if y.dim() != 2:
        raise ShapeError("y", tuple(y.shape), "one problem, a shape (M, d)")
    if not 1 < neighbours < len(y):
        raise ArgumentError("neighbours", neighbours, f"a number between 1 and M = {len(y)}")

    def excess(log_tau: float) -> float:
        try:
            field = replace(drift, tau=math.exp(log_tau)).fit(x, y)
        except (TemperatureError, OverflowError) as error:
            raise ArgumentError("neighbours", neighbours, REACHED) from error
        return math.log(float(effective_neighbours(two_sides(field, "drift"))) / neighbours)

    low = high = math.log(drift.tau)
    found = excess(low)
    # Entropy grows with temperature: first a bracket, then halvings of it.
    step = math.copysign(math.log(4), -found)
    for _ in range(HALVINGS):
        if abs(found) <= rtol:
            return math.exp(high)
        low, high = high, high + step
        before, found = found, excess(high)
        if before * found <= 0:
            break
    else:
        raise ArgumentError("neighbours", neighbours, REACHED)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        value = excess(middle)
        if abs(value) <= rtol:
            return math.exp(middle)
        low, high = (middle, high) if value * before > 0 else (low, middle)
    raise ArgumentError("neighbours", neighbours, REACHED)
