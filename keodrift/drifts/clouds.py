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
        name: Of the cloud's arguments: ``x``, ``y``, ``negative``.
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

    @staticmethod
    def of(x: Cloud, y: Cloud, negatives: Cloud | None, dtype: torch.dtype) -> Clouds:
        """Puts the clouds together.

        Raises:
            WeightsError: All particles or all data of a problem have weight 0.
        """
        a, b = x.shares, y.shares
        z, c = x.points, a
        if negatives is not None:
            z = torch.cat([z, negatives.points], -2)
            c = torch.cat([a, negatives.weights / count(a)], -1)
            c = c / c.sum(-1, keepdim=True)
        return Clouds(x.points, y.points, z, a, b, c, dtype)

    @property
    def has_negatives(self) -> bool:
        """Whether the model cloud holds more than the particles."""
        return self.z.shape[-2] > self.x.shape[-2]


def count(weights: Tensor) -> Tensor:
    """How many points have weight, ``(…, 1)``; the mean weight among them is its inverse."""
    return (weights > 0).sum(-1, keepdim=True).to(weights.dtype)


def refuse_orphans(negatives: Tensor | None, **extras: Tensor | None) -> None:
    """Refuses weights or labels of negatives that are not there."""
    for name, extra in extras.items():
        if negatives is None and extra is not None:
            what = name.removeprefix("negative_")
            raise ShapeError(name, f"{what} without points", "the negatives they are for")
