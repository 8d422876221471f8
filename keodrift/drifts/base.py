"""What every drift shares: the checks at the door, classes by label, a field out of clouds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from keodrift import checks
from keodrift.drifts.by_class import ClassField, fit_by_class
from keodrift.drifts.clouds import Cloud, Clouds, refuse_orphans
from keodrift.errors import OptionError
from keodrift.fields import Field


class Drift(ABC):
    """A recipe that turns two clouds into a drift field."""

    def __call__(self, x: Tensor, y: Tensor, **inputs: Any) -> Tensor:
        """The drift V at the particles: `fit` and one evaluation.

        Args:
            x: Particles, ``(…, N, d)``.
            y: Data, ``(…, M, d)``.
            **inputs: Weights, negatives, labels, start: as for `fit`.

        Returns:
            ``(…, N, d)`` in the dtype and on the device of ``x``, without a graph.

        Raises:
            ArgumentError: An input is not what it should be; see `keodrift.errors`.
        """
        return self.fit(x, y, **inputs)()

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
        model: Tensor | None = None,
        model_weights: Tensor | None = None,
        negatives: Tensor | None = None,
        negative_weights: Tensor | None = None,
        x_labels: Tensor | None = None,
        y_labels: Tensor | None = None,
        model_labels: Tensor | None = None,
        negative_labels: Tensor | None = None,
        start: Field | None = None,
    ) -> Field:
        """Fits the field.

        Args:
            x: Particles, ``(…, N, d)``.
            y: Data, ``(…, M, d)``.
            x_weights: Weights of the particles, ``(…, N)``; uniform by default.
            y_weights: Weights of the data, ``(…, M)``; uniform by default.
            model: Other draws of the model, ``(…, K, d)``, which repel in the particles' place. By
                default the particles repel each other: each one also itself, which their data
                never do, so that the field of a batch points inward on average. With as many
                independent draws as data it is 0 on average at q = p, whatever the batch.
            model_weights: Their weights, ``(…, K)``; uniform by default.
            negatives: Points that repel beside them, ``(…, U, d)``.
            negative_weights: Their weights relative to one draw of the model, ``(…, U)``; 1 by
                default.
            x_labels: Integer class of each particle, ``(N,)``. With labels every class is a
                problem of its own; sizes may differ.
            y_labels: Class of each data point, ``(M,)``.
            model_labels: Class of each model point, ``(K,)``.
            negative_labels: Class of each negative, ``(U,)``; without, all classes share them.
            start: A field fitted before on nearly the same clouds, whose potentials are carried
                over where there are any; cheaper, and the same to the tolerance of the solve. To
                carry them from batch to batch without a solve can make a training oscillate.

        Returns:
            A field, callable anywhere; with labels a `ClassField`.

        Raises:
            ArgumentError: An input is not what it should be; see `keodrift.errors`.
        """
        refuse_orphans("model", model, model_weights=model_weights, model_labels=model_labels)
        refuse_orphans(
            "negatives",
            negatives,
            negative_weights=negative_weights,
            negative_labels=negative_labels,
        )
        particles = Cloud.checked("x", x, x_weights, x_labels, x)
        data = Cloud.checked("y", y, y_weights, y_labels, x)
        drawn, extra = (
            None if points is None else Cloud.checked(name, points, weights, labels, x)
            for name, points, weights, labels in (
                ("model", model, model_weights, model_labels),
                ("negatives", negatives, negative_weights, negative_labels),
            )
        )
        clouds = [cloud for cloud in (particles, data, drawn, extra) if cloud is not None]
        labelled = any(cloud.labels is not None for cloud in clouds)
        if start is not None:
            if not isinstance(start, Field):
                raise OptionError("start", type(start).__name__, "a field fitted before")
            if not labelled and isinstance(start, ClassField):
                raise OptionError("start", "a field by class", "one fitted without labels")
            checks.check_cloud("start", start.particles, particles.points)
        recipe = self._tried_on(*(cloud.points for cloud in clouds))
        inputs = (particles, data, drawn, extra)
        with torch.no_grad():
            if not labelled:
                return recipe._fitted(Clouds.of(*inputs, dtype=x.dtype), start)
            d, device = x.shape[-1], x.device.type

            def together(n: int, m: int, problems: int) -> bool:
                return recipe._together(n, m, d, problems, device)

            return fit_by_class(recipe._fitted, together, *inputs, dtype=x.dtype, start=start)

    @abstractmethod
    def _fit(self, clouds: Clouds, start: Field | None) -> Field:
        """The recipe, on checked inputs, without a graph."""

    def _fitted(self, clouds: Clouds, start: Field | None) -> Field:
        return self._at(clouds)._fit(clouds, start)

    def _at(self, clouds: Clouds) -> Drift:
        """The recipe with what it takes from the clouds of one fit."""
        return self

    def _tried_on(self, *clouds: Tensor) -> Drift:
        """The recipe with what it has to learn of these clouds first."""
        return self

    def _together(self, n: int, m: int, d: int, problems: int, device: str) -> bool:
        """Whether so many problems of n particles and m other points go as one batch."""
        return False


class CarriedDrift(Drift):
    """A drift whose fits go on from each other: a training starts each from the field before.

    Its fields have a ``state_dict``, of tensors, numbers, strings and containers of them.
    """

    @abstractmethod
    def restored(self, state: dict[str, Any], x: Tensor) -> Field:
        """A field to start from, with that state, for particles like ``x (…, N, d)``."""
