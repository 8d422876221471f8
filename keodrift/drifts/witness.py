"""Any functional's gradient flow: V = −∇w of a first variation that is given as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keodrift.checks import check_queries
from keodrift.drifts.base import Drift
from keodrift.drifts.clouds import Clouds
from keodrift.errors import OptionError
from keodrift.fields import Field, saturated
from keodrift.precision import full_precision

Witness = Callable[[Tensor], Tensor]
NEEDS = "a function of points z (…, K, d) that returns (…, K) and that autograd can follow"


@dataclass(frozen=True, eq=False)
class WitnessField(Field):
    """V = −∇w by automatic differentiation.

    Attributes:
        particles: The particles it was fitted on, ``(…, N, d)``.
        function: w, of points ``(…, K, d)``; returns ``(…, K)``.
        dtype: Of the drift at the particles.
    """

    particles: Tensor
    function: Witness
    dtype: torch.dtype

    def __call__(self, z: Tensor | None = None) -> Tensor:
        """The drift at ``z (…, K, d)``, differentiable in it, or at the particles.

        Raises:
            ArgumentError: ``z`` is not a cloud of the field's dimension, or w is no such function.
        """
        points = self.particles if z is None else check_queries("z", z, self.particles)
        graph = points.requires_grad and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad(), full_precision(points.device.type):
            # A copy, because tensors made in inference mode cannot enter a graph.
            points = points if graph else points.detach().clone().requires_grad_()
            values = self._values(points)
            if not values.requires_grad:
                raise OptionError("first_variation", "values without a graph", NEEDS)
            (slope,) = torch.autograd.grad(values.sum(), points, create_graph=graph)
        return saturated(-slope, self.dtype if z is None else z.dtype)

    def witness(self, z: Tensor) -> Tensor:
        """The witness w at ``z (…, K, d)``; ``(…, K)``.

        Raises:
            ArgumentError: As for the field itself.
        """
        points = check_queries("z", z, self.particles)
        with full_precision(points.device.type):
            return saturated(self._values(points), z.dtype)

    def _values(self, points: Tensor) -> Tensor:
        values: Any = self.function(points)
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape != points.shape[:-1]:
            got = f"{shape} for points {tuple(points.shape)}"
            raise OptionError("first_variation", got, NEEDS)
        return values


@dataclass(frozen=True)
class WitnessDrift(Drift):
    """The gradient flow of any functional F of the model whose first variation can be written down.

    Attributes:
        first_variation: Called with the clouds of each fit as ``first_variation(x, a, y, b)``;
            returns w, the first variation of F at the model up to a constant: a function of points
            ``z (…, K, d)`` with values ``(…, K)``, made of what torch differentiates. ``x`` is the
            model, ``(…, N, d)`` (what ``model=`` and ``negatives=`` say, else the particles), ``y``
            the data, ``(…, M, d)``, ``a`` and ``b`` their weights with sum 1, in the dtype of the
            points. Nothing is streamed but what the function streams.

    Raises:
        OptionError: ``first_variation`` is no function; at a fit, it returns none, or one whose
            values are not one a point.

    Example:
        >>> import torch, keodrift as kd
        >>> def pull(x, a, y, b):  # F(q) = E_q ½‖z − mean of the data‖²
        ...     mean = (b[..., None] * y).sum(-2, keepdim=True)
        ...     return lambda z: (z - mean).square().sum(-1) / 2
        >>> kd.WitnessDrift(pull)(torch.zeros(1, 2), torch.ones(3, 2))
        tensor([[1., 1.]])
    """

    first_variation: Callable[[Tensor, Tensor, Tensor, Tensor], Witness]

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        given: Any = self.first_variation
        if not callable(given):
            needs = "a function of x, a, y, b that returns a function of points"
            raise OptionError("first_variation", type(given).__name__, needs)

    def _fit(self, clouds: Clouds, start: Field | None) -> WitnessField:
        with torch.inference_mode(False):
            x, y = clouds.z.clone(), clouds.y.clone()
            a, b = clouds.c.to(x.dtype, copy=True), clouds.b.to(y.dtype, copy=True)
            function: Any = self.first_variation(x, a, y, b)
        if not callable(function):
            got = f"a function that returns {type(function).__name__}"
            raise OptionError("first_variation", got, NEEDS)
        return WitnessField(clouds.x, function, clouds.dtype)
