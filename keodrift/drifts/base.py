"""What every drift shares: its hyper-parameters, the checks at the door, groups by label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from keodrift import checks
from keodrift.costs import as_cost
from keodrift.drifts.groups import drift_by_label
from keodrift.errors import OptionError, ShapeError
from keodrift.fields import DriftField, Side
from keodrift.reductions import ENGINES, GibbsKernel, gibbs_kernel


def count(weights: Tensor) -> Tensor:
    """How many points have weight, ``(…, 1)``; the mean weight among them is its inverse."""
    return (weights > 0).sum(-1, keepdim=True).to(weights.dtype)


@dataclass(frozen=True)
class Problem:
    """Checked inputs of one fit, in float32 at least, weights in float64 with sum 1.

    Attributes:
        x: Particles, ``(…, N, d)``.
        y: Data, ``(…, M, d)``.
        z: Model cloud, particles then extra negatives, ``(…, N + U, d)``.
        a: Weights of x.
        b: Weights of y.
        c: Weights of z; a particle and an extra negative of weight 1 count the same.
        dtype: What the drift is returned in.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    dtype: torch.dtype

    @property
    def has_negatives(self) -> bool:
        """Whether the model cloud holds more than the particles."""
        return self.z.shape[-2] > self.x.shape[-2]


@dataclass(frozen=True)
class Drift(ABC):
    """A recipe that turns two clouds into a drift field.

    Attributes:
        tau: Temperature τ > 0, in the unit of the cost. Small: each particle sees its nearest
            data; large: only the means.
        cost: Ground cost: ``"half_squared"`` (½‖x−y‖², default: τ is a variance),
            ``"squared"``, ``"euclidean"``, a `Cost`, or an expression ``c(x, y)``.
        mask_self: Excludes each particle from its own repulsion.
        velocity: ``"barycentric"`` (T(z) − z, the papers' choice) or ``"gradient"``
            (−Σ softmax ∇C; the same for ½‖x−y‖², unit vectors for ‖x−y‖).
        backend: ``"auto"`` picks the engine; `choose_backend` tells which and why.
    """

    tau: float
    _: KW_ONLY
    cost: Any = "half_squared"
    mask_self: bool = True
    velocity: str = "barycentric"
    backend: str = "auto"

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        object.__setattr__(self, "tau", checks.check_tau(self.tau))
        object.__setattr__(self, "cost", as_cost(self.cost))
        checks.check_choice("velocity", self.velocity, ("barycentric", "gradient"))
        checks.check_choice("backend", self.backend, ("auto", *ENGINES))
        if not isinstance(self.mask_self, bool):
            raise OptionError("mask_self", repr(self.mask_self), "True or False")

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
        negatives: Tensor | None = None,
        negative_weights: Tensor | None = None,
        x_labels: Tensor | None = None,
        y_labels: Tensor | None = None,
        negative_labels: Tensor | None = None,
        start: DriftField | None = None,
    ) -> Tensor:
        """The drift V at the particles.

        Args:
            x: Particles, ``(…, N, d)``.
            y: Data, ``(…, M, d)``.
            x_weights: Weights of the particles, ``(…, N)``; uniform by default.
            y_weights: Weights of the data, ``(…, M)``; uniform by default.
            negatives: Points that repel but do not move, ``(…, U, d)``.
            negative_weights: Their weights relative to one generated particle, ``(…, U)``; 1 by
                default.
            x_labels: Integer class of each particle, ``(N,)``. With labels every class is a
                problem of its own; sizes may differ.
            y_labels: Class of each data point, ``(M,)``.
            negative_labels: Class of each negative, ``(U,)``.
            start: A field fitted before, whose potentials are carried over (Sinkhorn).

        Returns:
            ``(…, N, d)`` in the dtype and on the device of ``x``, without a graph.

        Raises:
            ArgumentError: An input is not what it should be; see `keodrift.errors`.
        """
        given = {
            "x_weights": x_weights,
            "y_weights": y_weights,
            "negatives": negatives,
            "negative_weights": negative_weights,
        }
        if x_labels is None and y_labels is None and negative_labels is None:
            return self.fit(x, y, start=start, **given)()
        if start is not None:
            raise OptionError("start", "a field, with labels", "no labels, or no start")
        labels = {"x": x_labels, "y": y_labels, "negatives": negative_labels}
        return drift_by_label(self, x, y, labels, given)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
        negatives: Tensor | None = None,
        negative_weights: Tensor | None = None,
        start: DriftField | None = None,
    ) -> DriftField:
        """Fits the field; arguments as for a call, without labels.

        Returns:
            A `DriftField`, callable anywhere.

        Raises:
            ArgumentError: An input is not what it should be; see `keodrift.errors`.
        """
        problem = self.problem(x, y, x_weights, y_weights, negatives, negative_weights)
        if start is not None:
            if not isinstance(start, DriftField):
                raise OptionError("start", type(start).__name__, "a DriftField fitted before")
            checks.check_cloud("start", start.particles, problem.x)
        with torch.no_grad():
            return self._fit(problem, start)

    @abstractmethod
    def _fit(self, problem: Problem, start: DriftField | None) -> DriftField:
        """The recipe, on checked inputs, without a graph."""

    def problem(
        self,
        x: Tensor,
        y: Tensor,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        negatives: Tensor | None,
        negative_weights: Tensor | None,
    ) -> Problem:
        """Checks the inputs of one fit."""
        particles = checks.check_cloud("x", x)
        data = checks.check_cloud("y", y, x)
        a = checks.check_weights("x_weights", x_weights, particles)
        b = checks.check_weights("y_weights", y_weights, data)
        z, c = particles, a
        if negatives is not None:
            extra = checks.check_cloud("negatives", negatives, x)
            if negative_weights is None:
                w = torch.ones(extra.shape[:-1], dtype=torch.float64, device=extra.device)
            else:
                w = checks.check_column("negative_weights", negative_weights, extra)
            z = torch.cat([particles, extra], -2)
            c = torch.cat([a, w / count(a)], -1)
            c = c / c.sum(-1, keepdim=True)
        elif negative_weights is not None:
            raise ShapeError("negative_weights", "weights without points", "negatives to weight")
        checks.check_cost(self.cost, particles, data)
        return Problem(particles, data, z, a, b, c, x.dtype)

    def side(self, points: Tensor, bias: Tensor) -> Side:
        """A cloud with a bias, under this drift's cost, temperature and engine."""
        return Side(points, bias, self.cost, self.tau, self.backend)

    def kernel(self, x: Tensor, y: Tensor, masked: bool = False) -> GibbsKernel:
        """The Gibbs kernel of two clouds, under this drift's cost, temperature and engine."""
        return gibbs_kernel(x, y, self.cost, self.tau, mask_self=masked, backend=self.backend)

    def field(self, problem: Problem, data: Tensor, model: Tensor, **extra: Any) -> DriftField:
        """A field from the biases of its two sides."""
        return DriftField(
            problem.x,
            self.side(problem.y, data),
            self.side(problem.z, model),
            velocity=self.velocity,
            mask_self=self.mask_self,
            dtype=problem.dtype,
            **extra,
        )
