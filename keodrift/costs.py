"""Ground costs: one expression c(x, y) that every engine reads.

An expression receives ``x`` of shape ``(…, N, 1, d)`` and ``y`` of shape ``(…, 1, M, d)``, as
tensors or as KeOps LazyTensors, and reduces the last axis: ``((x - y) ** 2).sum(-1)``. The three
named costs also carry the structure that the engines use: how they scale with length, and that a
squared distance reacts to a translation only by a linear term in each cloud.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from keodrift.errors import CostError, OptionError

Expression = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Cost:
    """A ground cost C(x, y), symmetric where it serves a Sinkhorn self problem.

    Attributes:
        name: What it is called in messages and configs.
        expression: ``c(x, y)`` on broadcastable tensors and on LazyTensors alike.
        form: ``"quadratic"`` and ``"distance"`` name the two families that the engines evaluate
            with their own formulas; ``"expression"`` is evaluated as written.
        factor: The cost is ``factor·½‖x−y‖²`` (quadratic) or ``factor·‖x−y‖`` (distance).

    Example:
        >>> cosine = Cost("cosine", lambda x, y: 1 - (x * y).sum(-1))
        >>> cosine.pairs(torch.eye(2), torch.eye(2))
        tensor([[0., 1.],
                [1., 0.]])
    """

    name: str
    expression: Expression = field(repr=False)
    form: Literal["quadratic", "distance", "expression"] = "expression"
    factor: float = 1.0

    def pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """Evaluates the cost on every pair, dense.

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

    def scale(self, tau: float) -> float:
        """Factor on lengths after which a quadratic C/τ is ½‖·‖²; 1 for other costs."""
        return math.sqrt(self.factor / tau) if self.form == "quadratic" else 1.0


_EXPRESSION_NEEDS = (
    "an expression c(x, y) of x (…, N, 1, d) and y (…, 1, M, d) that reduces the last axis, "
    "such as ((x - y) ** 2).sum(-1)"
)


def _safe_root(square: Any) -> Any:
    # The distance has no derivative at 0; a floor makes it 0 there instead of NaN. LazyTensors
    # guard their own square root.
    if isinstance(square, Tensor):
        return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
    return square.sqrt()


# Named functions rather than lambdas, so that drifts and fields can be pickled.
def _squared(x: Any, y: Any) -> Any:
    return ((x - y) ** 2).sum(-1)


def _half_squared(x: Any, y: Any) -> Any:
    return _squared(x, y) / 2


def _euclidean(x: Any, y: Any) -> Any:
    return _safe_root(_squared(x, y))


half_squared = Cost("half_squared", _half_squared, "quadratic", 1.0)
squared = Cost("squared", _squared, "quadratic", 2.0)
euclidean = Cost("euclidean", _euclidean, "distance", 1.0)

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
