"""The costs that have names, and those that a number or a matrix makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keodrift.checks import check_positive
from keodrift.costs.cost import Cost, Expression
from keodrift.errors import CostError, OptionError


# Named functions rather than lambdas, so that drifts and fields can be pickled.
def _squared(x: Any, y: Any) -> Any:
    return ((x - y) ** 2).sum(-1)


def _half_squared(x: Any, y: Any) -> Any:
    return _squared(x, y) / 2


def _euclidean(x: Any, y: Any) -> Any:
    square = _squared(x, y)
    # The distance has no derivative at 0; a floor makes it 0 there instead of NaN. LazyTensors
    # guard their own square root.
    if isinstance(square, Tensor):
        square = square.clamp_min(torch.finfo(square.dtype).tiny)
    return square.sqrt()


def _itself(distance: Any) -> Any:
    return distance


half_squared = Cost("half_squared", _half_squared, symmetric=True, curvature=1.0, degree=2)
squared = Cost("squared", _squared, symmetric=True, curvature=2.0, degree=2)
euclidean = Cost("euclidean", _euclidean, symmetric=True, radial=_itself, degree=1)


@dataclass(frozen=True)
class _OfDistance:
    """An expression that is a function of the distance, which can be pickled as the function."""

    radial: Callable[[Any], Any]

    def __call__(self, x: Any, y: Any) -> Any:
        return self.radial(_euclidean(x, y))


@dataclass(frozen=True)
class _PseudoHuber:
    delta: float

    def __call__(self, distance: Any) -> Any:
        square = (distance / self.delta) ** 2
        return self.delta**2 * square / (1 + (1 + square).sqrt())  # no digits lost near 0


@dataclass(frozen=True)
class _Power:
    power: float

    def __call__(self, distance: Any) -> Any:
        return distance**self.power


def pseudo_huber(delta: float = 1.0) -> Cost:
    """δ²(√(1 + ‖x−y‖²/δ²) − 1): half squared up to about δ, then a slope of δ.

    Args:
        delta: δ > 0, a length. τ is a squared length.

    Raises:
        OptionError: δ is not positive.

    Example:
        >>> pseudo_huber(3.0).pairs(torch.zeros(1, 1), torch.tensor([[4.0]]))
        tensor([[6.]])
    """
    check_positive("delta", delta)
    radial = _PseudoHuber(float(delta))
    return Cost(f"pseudo_huber({delta:g})", _OfDistance(radial), symmetric=True, radial=radial)


def power(p: float) -> Cost:
    """‖x−y‖^p: the Laplacian kernel exp(−‖x−y‖^p/τ) and its relatives.

    Args:
        p: Power, in (0, 2]. τ is a length to the p.

    Raises:
        OptionError: p is not in that range.

    Example:
        >>> power(1.5).pairs(torch.zeros(1, 1), torch.tensor([[4.0]]))
        tensor([[8.]])
    """
    check_positive("p", p)
    if p > 2:
        raise OptionError("p", repr(p), "a number in (0, 2]")
    radial = _Power(float(p))
    if p in (1, 2):
        return euclidean if p == 1 else squared
    name = f"power({p:g})"
    return Cost(name, _OfDistance(radial), symmetric=True, radial=radial, degree=p)


@dataclass(frozen=True, eq=False)
class _Map:
    """A linear map of points, from the right."""

    matrix: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        d = len(self.matrix)
        if points.shape[-1] != d:
            got = f"'mahalanobis' in d = {d} for points in d = {points.shape[-1]}"
            raise CostError("cost", got, "a matrix of as many rows as the points have coordinates")
        return points @ self.matrix.to(points)


def _mahalanobis(x: Any, y: Any, root: Any) -> Any:
    return (((x - y) @ root) ** 2).sum(-1) / 2


def mahalanobis(matrix: Tensor) -> Cost:
    """½(x−y)ᵀA(x−y), as fast as the half squared cost.

    Args:
        matrix: A, symmetric and positive semidefinite ``(d, d)``, or the weights of coordinates
            ``(d,)``. τ has the unit of ½‖x−y‖² times that of A.

    Raises:
        OptionError: A is not such a matrix.

    Example:
        >>> mahalanobis(torch.tensor([4.0, 1.0])).pairs(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[2.5000]])
    """
    needs = "a symmetric positive semidefinite (d, d) tensor, or d non-negative weights"
    got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
    if not isinstance(matrix, Tensor) or matrix.dim() not in (1, 2) or not matrix.numel():
        raise OptionError("matrix", got, needs)
    full = (torch.diag(matrix) if matrix.dim() == 1 else matrix).detach().double()
    size = full.abs().max()
    if full.shape[0] != full.shape[1] or not bool(((full - full.mT).abs() <= 1e-6 * size).all()):
        raise OptionError("matrix", f"{got}, not symmetric or not finite", needs)
    values, vectors = torch.linalg.eigh(full)
    if float(values.min()) < -1e-6 * float(size):
        raise OptionError("matrix", f"an eigenvalue of {float(values.min()):g}", needs)
    root = vectors * values.clamp_min(0).sqrt()
    return Cost(
        "mahalanobis",
        _mahalanobis,
        symmetric=True,
        curvature=1.0,
        lift=_Map(root),
        parameters={"root": root},
    )


def _on_sphere(points: Tensor) -> Tensor:
    # A point at the origin has no direction: it stays there, at a cost of ½ from every other, and
    # no slope moves it.
    norm = points.norm(dim=-1, keepdim=True)
    return points / norm.where(norm >= torch.finfo(points.dtype).tiny, torch.inf)


def _cosine(x: Any, y: Any) -> Any:
    return _half_squared(_on_sphere(x), _on_sphere(y))


cosine = Cost("cosine", _cosine, symmetric=True, curvature=1.0, lift=_on_sphere)

COSTS: dict[str, Cost] = {cost.name: cost for cost in (half_squared, squared, euclidean, cosine)}
COSTS["pseudo_huber"] = pseudo_huber()


def as_cost(cost: Cost | str | Expression) -> Cost:
    """Turns a name, an expression or a `Cost` into a `Cost`.

    Args:
        cost: ``"half_squared"`` (½‖x−y‖²), ``"squared"`` (‖x−y‖²), ``"euclidean"`` (‖x−y‖),
            ``"cosine"`` (1 − cos), ``"pseudo_huber"`` (δ = 1), a `Cost` (`pseudo_huber`, `power`,
            `mahalanobis`), or an expression ``c(x, y)`` for tensors and LazyTensors alike.

    Raises:
        OptionError: The name is unknown, or the object is none of these.

    Example:
        >>> as_cost("squared").name
        'squared'
    """
    if isinstance(cost, Cost):
        return cost
    if isinstance(cost, str) and cost in COSTS:
        return COSTS[cost]
    if callable(cost):
        return Cost(getattr(cost, "__name__", type(cost).__name__), cost)
    raise OptionError("cost", repr(cost), f"one of {sorted(COSTS)}, a Cost, or c(x, y)")
