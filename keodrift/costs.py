"""Ground costs: one expression c(x, y) that every engine reads.

An expression receives ``x`` of shape ``(…, N, 1, d)`` and ``y`` of shape ``(…, 1, M, d)``, as
tensors, as symbols of coordinates (what those can do, KeOps vectorises) or as KeOps LazyTensors,
and reduces the last axis: ``((x - y) ** 2).sum(-1)``. What more is known of a cost stands beside
its expression: engines and starts ask for the knowledge, not for the name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from keodrift.errors import CostError, OptionError

Expression = Callable[..., Any]


@dataclass(frozen=True)
class Cost:
    """A ground cost C(x, y) with what is known of it.

    Attributes:
        name: What it is called in messages and configs.
        expression: ``c(x, y)`` on broadcastable tensors and on LazyTensors alike.
        symmetric: Whether c(x, y) = c(y, x); None to have it tried on the points of each call.
        curvature: Of a quadratic cost, which is ``curvature·½‖x−y‖²``; None for any other.
            Translations then leave the pair loop, and matrix products replace differences.
        radial: The cost as a function of the distance ‖x−y‖ alone, where it is one.
        degree: p where c(sx, sy) = s^p·c(x, y): how lengths follow the temperature.
        lift: Brings points ``(…, d)`` to where the cost is what ``curvature`` or ``radial`` say of
            it: a map for Mahalanobis, onto the sphere for the cosine.
        parameters: Tensors that the expression takes by name. They follow the dtype and device of
            the points, and another value compiles nothing anew.

    Example:
        >>> cosine = Cost("cosine", lambda x, y: 1 - (x * y).sum(-1))
        >>> cosine.pairs(torch.eye(2), torch.eye(2))
        tensor([[0., 1.],
                [1., 0.]])
    """

    name: str
    expression: Expression = field(repr=False)
    symmetric: bool | None = None
    curvature: float | None = None
    radial: Callable[[Any], Any] | None = field(default=None, repr=False)
    degree: float | None = None
    lift: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    parameters: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """Evaluates the expression on every pair, dense.

        Args:
            x: Points, ``(…, N, d)``.
            y: Points, ``(…, M, d)``.

        Returns:
            ``(…, N, M)``, in the unit of the cost.

        Raises:
            CostError: The expression does not return one number a pair.

        Example:
            >>> half_squared.pairs(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
            tensor([[12.5000]])
        """
        shape = (*x.shape[:-1], y.shape[-2])
        try:
            given = {name: one.to(x) for name, one in self.parameters.items()}
            value = self.expression(x.unsqueeze(-2), y.unsqueeze(-3), **given)
        except (RuntimeError, TypeError, AttributeError, IndexError) as error:
            raise CostError(
                "cost", f"'{self.name}', which fails on tensors: {error}", _EXPRESSION_NEEDS
            ) from error
        if not isinstance(value, Tensor) or value.shape != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CostError(
                "cost", f"'{self.name}' returning {got} for {shape} pairs", _EXPRESSION_NEEDS
            )
        return value

    @property
    def turned(self) -> Cost:
        """The cost of the pair (y, x): itself where it is symmetric."""
        if self.symmetric:
            return self
        written = self.expression
        back = written.expression if isinstance(written, _Turned) else _Turned(written)
        return replace(self, expression=back)

    @property
    def by_distance(self) -> bool:
        """Whether engines may form distances in place of evaluating the expression."""
        return self.curvature is not None or self.radial is not None

    def length(self, tau: Tensor) -> Tensor | None:
        """The length at which the cost is about τ, or None where it is not known."""
        if self.degree is None or self.lift is not None:
            return None
        return (tau / (self.curvature or 1.0)) ** (1 / self.degree)


@dataclass(frozen=True)
class _Turned:
    """An expression with its points exchanged, which can be pickled as the expression can."""

    expression: Expression

    def __call__(self, x: Any, y: Any, **parameters: Any) -> Any:
        return self.expression(y, x, **parameters)


_EXPRESSION_NEEDS = (
    "an expression c(x, y) of x (…, N, 1, d) and y (…, 1, M, d) that reduces the last axis, "
    "such as ((x - y) ** 2).sum(-1)"
)


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
class _Multiple:
    factor: float

    def __call__(self, distance: Any) -> Any:
        return self.factor * distance


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


def _positive(name: str, value: Any, most: float = math.inf) -> float:
    number = float(value) if isinstance(value, Real) and value is not True else math.nan
    if not 0 < number <= most or number == math.inf:
        raise OptionError(name, repr(value), f"a number in (0, {most:g}]")
    return number


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
    radial = _PseudoHuber(_positive("delta", delta))
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
    radial = _Power(_positive("p", p, 2.0))
    if p in (1, 2):
        return euclidean if p == 1 else squared
    name = f"power({p:g})"
    return Cost(name, _OfDistance(radial), symmetric=True, radial=radial, degree=p)


@dataclass(frozen=True, eq=False)
class _Map:
    """A linear map of points, from the right."""

    matrix: Tensor

    def __call__(self, points: Tensor) -> Tensor:
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
    # A point at the origin has no direction: it stays there, at a cost of ½ from every other.
    return points / points.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(points.dtype).tiny)


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


# Probes lie this many times as far from their mean as the points they come from, so that what
# agrees among near points alone is told apart.
_SPREADS = (1e-3, 1.0, 1e3)
_AGREEMENT = 1e-9  # of values, relative to a pair's own and the largest
_FORM_DIMENSION = 32  # up to which a quadratic form is looked for: d² pairs are evaluated


def recognised(cost: Cost, points: Tensor) -> Cost:
    """A user's expression with what its values say of it: it may be a cost that is known.

    Tried in float64 are multiples of ½‖x−y‖² and ‖x−y‖, the named costs, and quadratic forms.

    Args:
        cost: The cost.
        points: Some points, ``(K, d)``, about which it is tried.

    Returns:
        The cost, which takes the path of the known one; itself where it is none.

    Example:
        >>> mine = Cost("mine", lambda x, y: 3 * ((x - y) ** 2).sum(-1))
        >>> recognised(mine, torch.randn(8, 2)).curvature
        6.0
    """
    points = points.double()
    origin = points.mean(-2, keepdim=True)
    clouds = [origin + spread * (points - origin) for spread in _SPREADS]
    try:
        values = torch.stack([cost.pairs(z, z) for z in clouds])
        form = _form(cost, origin, float((points - origin).abs().max()))
    except CostError:
        return cost  # such as one that holds a tensor of another dtype

    def agrees(other: Cost, factor: float = 1.0) -> bool:
        those = factor * torch.stack([other.pairs(z, z) for z in clouds])
        size = values.abs() + values.abs().amax((-1, -2), keepdim=True)
        return bool(((values - those).abs() <= _AGREEMENT * size).all())

    far = int(values[1].abs().argmax())
    for known in (squared, euclidean):
        factor = float(values[1].flatten()[far] / known.pairs(points, points).flatten()[far])
        if factor > 0 and agrees(known, factor):
            if known.curvature is not None:
                return replace(known, name=cost.name, curvature=known.curvature * factor)
            return replace(known, name=cost.name, radial=_Multiple(factor))
    named = (*COSTS.values(), *([] if form is None else [form]))
    found = next((known for known in named if agrees(known)), None)
    return cost if found is None else replace(found, name=cost.name)


def _form(cost: Cost, origin: Tensor, unit: float) -> Cost | None:
    """The quadratic form ½(x−y)ᵀA(x−y) that a cost may be, by its values at a few points."""
    d = origin.shape[-1]
    if d > _FORM_DIMENSION or unit == 0:
        return None
    steps = unit * torch.eye(d, dtype=origin.dtype, device=origin.device)
    both = (steps[:, None] + steps[None]).reshape(-1, d)
    own = cost.pairs(origin + steps, origin)[:, 0]
    matrix = cost.pairs(origin + both, origin).reshape(d, d) - own[:, None] - own[None]
    try:
        return mahalanobis(matrix / unit**2)
    except OptionError:
        return None
