"""Checked inputs of a fit: who attracts, who repels, with which weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keodrift import checks
from keodrift.errors import ShapeError


@dataclass(frozen=True)
class Cloud:
    """One cloud as it was given, checked.

    Attributes:
        name: Of the cloud's arguments: ``x``, ``y``, ``model``, ``negative``.
        points: ``(…, K, d)``, in float32 at least.
        weights: float64 ``(…, K)``, not normalised; ones where none were given.
        labels: Class of each point, ``(K,)``, or None.
    """

    name: str
    points: Tensor
    weights: Tensor
    labels: Tensor | None = None

    @staticmethod
    def checked(
        argument: str, points: Tensor, weights: Tensor | None, labels: Tensor | None, like: Tensor
    ) -> Cloud:
        """Checks what was given for one cloud.

        Raises:
            ArgumentError: As in `keodrift.checks`.
        """
        name = argument.removesuffix("s")
        cloud = checks.check_cloud(argument, points, None if points is like else like)
        mass = checks.check_weights(f"{name}_weights", weights, cloud)
        if labels is not None:
            checks.check_labels(f"{name}_labels", labels, cloud)
        return Cloud(name, cloud, mass, labels)

    def part(self, index: Tensor, alive: Tensor) -> Cloud:
        """A batch of parts ``(B, K)``; what is not alive has no weight."""
        return Cloud(self.name, self.points[index], self.weights[index] * alive)

    @property
    def shares(self) -> Tensor:
        """The weights with sum 1."""
        return checks.normalised(f"{self.name}_weights", self.weights)


@dataclass(frozen=True)
class Clouds:
    """Checked inputs of one fit, in float32 at least, weights in float64 with sum 1.

    Attributes:
        x: Particles, ``(…, N, d)``.
        y: Data, ``(…, M, d)``.
        z: Model cloud, what repels: model points, then extra negatives, ``(…, K + U, d)``.
        a: Weights of x.
        b: Weights of y.
        c: Weights of z; a model point and an extra negative of weight 1 count the same.
        model_points: K, how many of z are draws of the model.
        repels_itself: Whether those are the particles themselves, or other draws.
        dtype: What the drift is returned in.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    model_points: int
    repels_itself: bool
    dtype: torch.dtype

    @staticmethod
    def of(
        x: Cloud,
        y: Cloud,
        model: Cloud | None = None,
        negatives: Cloud | None = None,
        *,
        dtype: torch.dtype,
    ) -> Clouds:
        """Puts the clouds together; without a model cloud the particles repel each other.

        Raises:
            WeightsError: All points of a cloud of a problem have weight 0.
        """
        a, b = x.shares, y.shares
        z, c = (x.points, a) if model is None else (model.points, model.shares)
        drawn = z.shape[-2]
        if negatives is not None:
            z = torch.cat([z, negatives.points], -2)
            c = torch.cat([c, negatives.weights / count(c)], -1)
            c = checks.normalised("negative_weights", c)
        return Clouds(x.points, y.points, z, a, b, c, drawn, model is None, dtype)

    @property
    def has_negatives(self) -> bool:
        """Whether the model cloud holds more than draws of the model."""
        return self.z.shape[-2] > self.model_points

    @property
    def multiplicities(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of x, y and z in units of one point: a uniform cloud counts its points."""
        drawn = self.c[..., : self.model_points]
        c = self.c / drawn.sum(-1, keepdim=True) * count(drawn)
        return self.a * count(self.a), self.b * count(self.b), c


def count(weights: Tensor) -> Tensor:
    """How many points have weight, ``(…, 1)``; the mean weight among them is its inverse."""
    return (weights > 0).sum(-1, keepdim=True).to(weights.dtype)


def refuse_orphans(argument: str, points: Tensor | None, **extras: Tensor | None) -> None:
    """Refuses weights or labels of a cloud that is not there."""
    for name, extra in extras.items():
        if points is None and extra is not None:
            what = name.rpartition("_")[2]
            raise ShapeError(name, f"{what} without points", f"the {argument} they are for")
