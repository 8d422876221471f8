"""A ground cost: one expression c(x, y) that every engine reads.

An expression receives ``x`` of shape ``(…, N, 1, d)`` and ``y`` of shape ``(…, 1, M, d)``, as
tensors, as symbols of coordinates (what those can do, KeOps vectorises) or as KeOps LazyTensors,
and reduces the last axis: ``((x - y) ** 2).sum(-1)``. What more is known of a cost stands beside
its expression: engines and starts ask for the knowledge, not for the name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from keodrift.errors import CostError, is_short
from keodrift.precision import full_precision

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
        >>> import torch
        >>> cosine = Cost("cosine", lambda x, y: 1 - (x * y).sum(-1))
        >>> cosine.pairs(torch.eye(2), torch.eye(2))
        tensor([[0., 1.],
                [1., 0.]])
    """

    name: str
    expression: Expression = field(repr=False, hash=False)  # it may be of an unhashable class
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
            >>> import torch
            >>> from keodrift.costs import half_squared
            >>> half_squared.pairs(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
            tensor([[12.5000]])
        """
        shape = (*x.shape[:-1], y.shape[-2])
        try:
            given = {name: one.to(x) for name, one in self.parameters.items()}
            with full_precision(x.device.type):
                value = self.expression(x.unsqueeze(-2), y.unsqueeze(-3), **given)
        except _REFUSALS as error:
            if is_short(error):
                raise
            raise CostError(
                "cost", f"'{self.name}', which fails on tensors: {error}", _EXPRESSION_NEEDS
            ) from error
        if not isinstance(value, Tensor) or value.shape != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CostError(
                "cost", f"'{self.name}' returning {got} for {shape} pairs", _EXPRESSION_NEEDS
            )
        return value

    def matched(self, x: Tensor, y: Tensor) -> Tensor:
        """The cost of every x_i with its own y_i, ``(…, N)``, of two clouds ``(…, N, d)``."""
        return self.pairs(x.unsqueeze(-2), y.unsqueeze(-2))[..., 0, 0]

    def lifted(self, points: Tensor) -> Tensor:
        """Points where the cost is what is known of it: themselves, where nothing lifts them."""
        if self.lift is None:
            return points
        with full_precision(points.device.type):
            return self.lift(points)

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


_REFUSALS = RuntimeError, TypeError, AttributeError, IndexError, ValueError, AssertionError

_EXPRESSION_NEEDS = (
    "an expression c(x, y) of x (…, N, 1, d) and y (…, 1, M, d) that reduces the last axis, "
    "such as ((x - y) ** 2).sum(-1)"
)
