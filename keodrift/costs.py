"""Ground costs: one expression c(x, y) that every engine reads.

An expression receives ``x`` of shape ``(…, N, 1, d)`` and ``y`` of shape ``(…, 1, M, d)``, as
tensors or as KeOps LazyTensors, and reduces the last axis: ``((x - y) ** 2).sum(-1)``. What more
is known of a cost stands beside its expression: engines and starts ask for the knowledge, not for
the name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from keodrift.errors import CostError, OptionError

Expression = Callable[[Any, Any], Any]


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
            value = self.expression(x.unsqueeze(-2), y.unsqueeze(-3))
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
        if self.degree is None:
            return None
        return (tau / (self.curvature or 1.0)) ** (1 / self.degree)


@dataclass(frozen=True)
class _Turned:
    """An expression with its points exchanged, which can be pickled as the expression can."""

    expression: Expression

    def __call__(self, x: Any, y: Any) -> Any:
        return self.expression(y, x)


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

COSTS: dict[str, Cost] = {cost.name: cost for cost in (half_squared, squared, euclidean)}


def as_cost(cost: Cost | str | Expression) -> Cost:
    """Turns a name, an expression or a `Cost` into a `Cost`.

    Args:
        cost: ``"half_squared"`` (½‖x−y‖²), ``"squared"`` (‖x−y‖²), ``"euclidean"`` (‖x−y‖), a
            `Cost`, or an expression ``c(x, y)`` for tensors and LazyTensors alike.

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
