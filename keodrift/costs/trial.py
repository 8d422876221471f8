"""A cost tried on points: whether it is one, which one, and whether τ suits it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from keodrift.costs.cost import Cost
from keodrift.costs.named import COSTS, cosine, euclidean, mahalanobis, squared
from keodrift.errors import CostError, OptionError, TemperatureError

PROBES = 32  # points of a cloud, at most, that a user's cost is tried on; √B fewer in a batch of B
# Sizes of further clouds of probes, relative to the points': what agrees among near points alone,
# or along the line on which they happen to lie, is told apart there.
SPREADS, PROBED = (1e-3, 1.0, 1e3), 16
AGREEMENT = 1e-9  # of values, relative to a pair's own and the largest
LARGEST = 1e29  # of C/τ in any dtype: formulas that are compiled have −1e30 for −∞
FORM_DIMENSION = 32  # up to which a quadratic form is looked for: d² pairs are evaluated


def check_cost(cost: Cost, *clouds: Tensor) -> Cost:
    """Tries a user's expression on some points of each cloud, for what it is.

    Returns:
        The cost, with its symmetry known, and with all that is known of the cost that it is.

    Raises:
        CostError: It fails, or does not return one finite number a pair.
    """
    if cost.by_distance:
        return cost
    few = _few(clouds)
    values = cost.pairs(few, few)
    if not bool(torch.isfinite(values).all()):
        raise CostError("cost", f"'{cost.name}' returning NaN or infinity", "finite values")
    points = few.reshape(-1, few.shape[-1])
    cost = recognised(cost, points[:: -(-len(points) // (2 * PROBES))])
    if cost.symmetric is not None:
        return cost
    off, size = float((values - values.mT).abs().max()), float(values.abs().max())
    return replace(cost, symmetric=off <= 64 * torch.finfo(values.dtype).eps * size)


def recognised(cost: Cost, points: Tensor) -> Cost:
    """A user's cost with what its values say of it: it may be one that is known.

    Tried in float64 are multiples of the named costs, and quadratic forms.

    Args:
        cost: The cost.
        points: Some points, ``(K, d)``, among which and about which it is tried.

    Returns:
        The cost, which takes the path of the known one; itself where it is none.

    Example:
        >>> mine = Cost("mine", lambda x, y: 3 * ((x - y) ** 2).sum(-1))
        >>> recognised(mine, torch.zeros(1, 2)).curvature
        6.0
    """
    points = points.double()
    origin = points.mean(-2, keepdim=True)
    size = float((points - origin).abs().max()) or 1.0
    draw = torch.Generator().manual_seed(0)
    shape = PROBED, points.shape[-1]
    around = torch.randn(shape, dtype=points.dtype, generator=draw, device="cpu").to(points)
    clouds = [points, *(origin + spread * size * around for spread in SPREADS)]
    try:
        values = [cost.pairs(z, z) for z in clouds]
        form = _form(cost, origin, size)
    except CostError:
        return cost  # such as one that holds a tensor of another dtype
    middle = 1 + SPREADS.index(1.0)
    far = values[middle].abs().argmax()
    for known in (squared, euclidean, cosine, COSTS["pseudo_huber"], form):
        if known is None:
            continue
        others = [known.pairs(z, z) for z in clouds]
        factor = float(values[middle].flatten()[far] / others[middle].flatten()[far])
        if factor > 0 and all(map(_agree, values, (factor * other for other in others))):
            return replace(
                cost,
                symmetric=True,
                curvature=None if known.curvature is None else factor * known.curvature,
                radial=None if known.radial is None else _Multiple(known.radial, factor),
                degree=known.degree,
                lift=known.lift,
            )
    return cost


def _few(clouds: Sequence[Tensor]) -> Tensor:
    """Some points of each cloud, evenly picked; fewer of each problem of a large batch."""
    most = max(2, int(PROBES / math.sqrt(max(1, math.prod(clouds[0].shape[:-2])))))
    return torch.cat([z[..., :: -(-z.shape[-2] // most), :] for z in clouds], -2)


def _agree(values: Tensor, others: Tensor) -> bool:
    most = values.abs() + values.abs().max()
    return bool(((values - others).abs() <= AGREEMENT * most).all())


def _form(cost: Cost, origin: Tensor, unit: float) -> Cost | None:
    """The quadratic form ½(x−y)ᵀA(x−y) that a cost may be, by its values at a few points."""
    d = origin.shape[-1]
    if d > FORM_DIMENSION:
        return None
    steps = unit * torch.eye(d, dtype=origin.dtype, device=origin.device)
    both = (steps[:, None] + steps[None]).reshape(-1, d)
    own = cost.pairs(origin + steps, origin)[:, 0]
    matrix = cost.pairs(origin + both, origin).reshape(d, d) - own[:, None] - own[None]
    try:
        return mahalanobis(matrix / unit**2)
    except OptionError:
        return None


@dataclass(frozen=True)
class _Multiple:
    """A function of the distance, so many times."""

    radial: Callable[[Any], Any]
    factor: float

    def __call__(self, distance: Any) -> Any:
        return self.factor * self.radial(distance)


def check_temperature(tau: float, cost: Cost, *clouds: Tensor) -> None:
    """Checks that C/τ between points of the clouds stays within their dtype.

    Raises:
        TemperatureError: It does not.
    """
    clouds = tuple(map(cost.lifted, clouds))
    low, high = (torch.stack([z.aminmax(dim=-2)[k].double() for z in clouds]) for k in (0, 1))
    if cost.curvature is not None:
        # Each cloud about its own mean: what lies between them is kept in float64.
        widest = cost.curvature * (high - low).norm(dim=-1).sum(0).square() / 2
    elif cost.radial is not None:
        widest = cost.radial((high.amax(0) - low.amin(0)).norm(dim=-1))
    else:
        few = _few(clouds)
        widest = 16 * cost.pairs(few, few).abs().double()
    reach = float(widest.max()) / tau
    limit = min(torch.finfo(clouds[0].dtype).max / 1024, LARGEST)
    if not reach < limit:
        needs = f"one at which it stays below {limit:.0e}"
        needs += ", or float64" if clouds[0].dtype != torch.float64 else ""
        raise TemperatureError("tau", f"{tau:g}, at which C/τ reaches {reach:.0e}", needs)
