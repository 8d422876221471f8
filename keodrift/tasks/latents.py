"""A conditional network of labelled latents, and how close it comes to the data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keodrift import plots
from keodrift.checks import check_positive
from keodrift.data import Latents
from keodrift.errors import OptionError, ShapeError
from keodrift.exports import KNOWN
from keodrift.files import atomic_path
from keodrift.metrics import (
    class_nearest_neighbour_test,
    class_variance_ratio,
    class_wasserstein_squared,
    frechet_distance,
)
from keodrift.metrics.clouds import by_class
from keodrift.networks import sample
from keodrift.tasks.guidance import Guidance
from keodrift.tasks.images import (
    Map,
    decoded,
    decoded_odds,
    image_features,
    imported,
    readings,
    shown,
)
from keodrift.tasks.latent_batches import latent_batches
from keodrift.tasks.task import Task, check_count
from keodrift.training import BatchSource

JUDGED = 5000  # held-out latents of a class, at most: exact transport grows like their cube


@dataclass(frozen=True)
class LatentTask(Task):
    """Labelled latents to learn, and the judge of what was learned.

    Numbers of points are those of each class; the other attributes are as for `Task`.

    Attributes:
        latents: Where the data come from.
        guidance: Lets data of any class repel too; none by default.
        classifier: Reads classes off decoded samples, images ``(n, H, W)`` to logits; none by
            default.
        judge_samples: Held-out latents of each class that judge at the end, and as many samples;
            by default all there are, or 5000.
        judge_draws: How often the judge draws samples, and other training latents for the floor;
            it gives the means.
        decoder: Latents ``(n, d)`` to images ``(n, …)``, a function or its import path, such as
            ``"package.module:function"``; what the latents bring by default.
        features: Images to features ``(n, f)``, likewise: the judge compares those as well (FID,
            where they are an Inception network's). None by default.

    Raises:
        ArgumentError: As for `Task`; ``latents`` are none; a function cannot be imported, or gives
            another shape for two latents; or a classifier or features are to judge latents that
            nothing decodes.

    Example:
        >>> from keodrift.data import load_digits_latents
        >>> from keodrift.networks import ConditionalMLP
        >>> task = LatentTask(load_digits_latents(6), evaluate_samples=10)
        >>> sorted(task.evaluate(ConditionalMLP(dim=6)))
        ['w2_squared']
    """

    latents: Latents
    _: KW_ONLY
    batch: int = 64
    guidance: Guidance | None = None
    classifier: nn.Module | None = None
    evaluate_samples: int = 200
    judge_samples: int | None = None
    judge_draws: int = 1
    decoder: str | Map | None = None
    features: str | Map | None = None

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        self.check_data(type(self.latents), Latents)
        super().__post_init__()
        if self.judge_samples is not None:
            check_count("judge_samples", self.judge_samples)
        check_positive("judge_draws", self.judge_draws, integer=True)
        if self.decoder is not None:
            decode = imported("decoder", self.decoder)
            shape = decoded(self.latents.test[:2], decode).shape[1:]
            latents = replace(self.latents, decode=decode, image_shape=tuple(shape))
            object.__setattr__(self, "latents", latents)
        elif self.latents.decode is not None and self.latents.image_shape is not None:
            made = tuple(decoded(self.latents.test[:2], self.latents.decode).shape[1:])
            if made != tuple(self.latents.image_shape):
                got = f"a function to images {made}"
                raise ShapeError("decode", got, f"one to image_shape, {self.latents.image_shape}")
        for name, judge in (("classifier", self.classifier), ("features", self.features)):
            if judge is not None and self.latents.decode is None:
                raise OptionError(name, "latents without decode", "a decoder, or None")
        for k, count in enumerate(torch.bincount(self.latents.test_labels).tolist()):
            if count < 2:
                got = f"one held-out latent of class {self.latents.class_names[k]!r}"
                raise OptionError("latents", got, "two or more of every class to judge by")
        # Now, rather than after the training.
        if self.features is not None:
            object.__setattr__(self, "features", imported("features", self.features))
            self._features(self.latents.test[:2])
        if self.classifier is not None:
            self._odds(self.latents.test[:2])

    def network_defaults(self) -> dict[str, int]:
        """As much noise as latent dimensions, the classes, and room for ω with guidance."""
        dim, told = self.latents.dim, 0 if self.guidance is None else 32
        return {
            "noise_dim": dim,
            "dim": dim,
            "classes": self.latents.classes,
            "guidance_dim": told,
        }

    def batches(self, network: nn.Module) -> BatchSource:
        """What trains a network; see `latent_batches`.

        Raises:
            OptionError: A network of this library makes something else than these latents.
        """
        if isinstance(network, KNOWN):
            made = [getattr(network, name, None) for name in ("dim", "classes")]
            if made != [self.latents.dim, self.latents.classes]:
                got = f"{type(network).__name__} with dim, classes = {made}"
                needs = f"ConditionalMLP with {[self.latents.dim, self.latents.classes]}"
                raise OptionError("network", got, needs)
        return latent_batches(
            network,
            self.latents,
            self.batch,
            balanced=self.balanced,
            negatives=self.negatives,
            data_per_class=self.data_batch,
            guidance=self.guidance,
        )

    def sample(self, network: nn.Module, labels: Tensor) -> Tensor:
        """A sample of each class ``(n,)`` at ω = 1, in the latents' dtype, from the same noise."""
        points = sample(network, len(labels), self._generator(2), labels=labels.to(self.device))
        return points.to(self.latents.test)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Numbers for the log: W₂² to the held-out latents of a class, in the mean over classes."""
        classes = torch.arange(self.latents.classes, device=self.latents.test.device)
        labels = classes.repeat_interleave(self.evaluate_samples)
        return {"w2_squared": self._looked_at(self.sample(network, labels), labels)}

    def judge(self, network: nn.Module, folder: Path) -> dict[str, Any]:
        """Judges a trained network by as many samples as held-out latents, and keeps them.

        Args:
            network: The network.
            folder: Where ``samples.npz`` goes.

        Returns:
            Means over classes: ``w2_squared``, ``w2_relative`` (over the variance of the class),
            ``latent_frechet``, ``variance_ratio`` and ``nearest_neighbour`` (½ is
            indistinguishable), where there are features ``image_frechet``, and where there is a
            classifier what `readings` finds in all samples. Each again as ``…_floor``, which is
            what training latents score; then ``w2_squared_by_class``.
        """
        labels, draws = self._real[1], self.judge_draws
        counts = torch.bincount(labels).tolist()
        clouds = self.sample(network, labels.repeat(draws)).split(len(labels))
        with atomic_path(folder / "samples.npz") as draft:
            np.savez(draft, generated=clouds[0].cpu().numpy(), labels=labels.cpu().numpy())
        scores, by_class = self._mean_scores((points, labels) for points in clouds)
        result: dict[str, Any] = {**scores, "w2_squared_by_class": by_class}
        floor, _ = self._mean_scores(self._picked(counts, turn=k / draws) for k in range(draws))
        return result | {f"{name}_floor": value for name, value in floor.items()}

    def draw(self, network: nn.Module, history: Sequence[dict[str, float]], folder: Path) -> None:
        """Draws a training and its samples.

        Args:
            network: The network.
            history: The log of its training.
            folder: Where ``curves.png`` and ``samples.png`` go.
        """
        title = "$W_2^2$ of a class falls towards what real latents score"
        floor = self._looked_at(*self._picked([self.evaluate_samples] * self.latents.classes))
        self._draw_curve(history, floor, title, folder)
        labels = self._real[1]
        points = self.sample(network, labels.repeat(self.judge_draws))[: len(labels)]
        plots.save_figure(shown(self.latents, points, labels, *self._real), folder / "samples.png")

    def _looked_at(self, points: Tensor, labels: Tensor) -> float:
        """W₂² of a class at `evaluate_samples` points on either side, in the mean."""
        real = self.latents.test, self.latents.test_labels
        found = class_wasserstein_squared(points, labels, *real, cap=self.evaluate_samples)
        return statistics.fmean(found.values())

    def _problems(self) -> list[Tensor]:
        return [self.latents.of_class(k) for k in range(self.latents.classes)]

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        """The held-out latents that judge at the end, and their classes."""
        most, labels = self.judge_samples, self.latents.test_labels
        if most is None and int(torch.bincount(labels).max()) <= JUDGED:
            return self.latents.test, labels
        return self._picked([most or JUDGED] * self.latents.classes, test=True)

    @cached_property
    def _real_features(self) -> Tensor:
        return self._features(self._real[0])

    def _features(self, points: Tensor) -> Tensor:
        decode, features = self.latents.decode, self.features
        return image_features(points, decode, features)  # type: ignore[arg-type]  # checked above

    @cached_property
    def _real_odds(self) -> Tensor:
        return self._odds(self._real[0])

    def _odds(self, points: Tensor) -> Tensor:
        decode, classifier = self.latents.decode, self.classifier
        return decoded_odds(points, decode, classifier)  # type: ignore[arg-type]

    def _mean_scores(
        self, clouds: Iterable[tuple[Tensor, Tensor]]
    ) -> tuple[dict[str, float], dict[str, float]]:
        scores, by_class = zip(*(self._scores(*cloud) for cloud in clouds), strict=True)
        return _mean(scores), _mean(by_class)

    def _scores(self, points: Tensor, labels: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        clouds = (points, labels, *self._real)
        w2 = class_wasserstein_squared(*clouds, cap=len(labels))
        sizes = {k: float(self.latents.of_class(k, test=True).double().var(0).sum()) for k in w2}
        measures = {
            "w2_squared": w2,
            "w2_relative": {k: w2[k] / sizes[k] if sizes[k] else math.inf for k in w2},
            "latent_frechet": by_class(frechet_distance, *clouds, least=2),
            "variance_ratio": class_variance_ratio(*clouds),
            "nearest_neighbour": class_nearest_neighbour_test(*clouds),
        }
        if self.features is not None:
            features = (self._features(points), labels, self._real_features, self._real[1])
            measures["image_frechet"] = by_class(frechet_distance, *features, least=2)
        means = {name: statistics.fmean(found.values()) for name, found in measures.items()}
        if self.classifier is not None:
            means |= readings(self._odds(points), self._real_odds, labels)
        return means, {self.latents.class_names[k]: value for k, value in w2.items()}

    def _picked(
        self, most: Sequence[int], *, test: bool = False, turn: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Evenly picked latents and their classes, of each so many or all there are.

        Another ``turn`` in [0, 1) takes others, as far as there are.
        """
        picks, labels = [], []
        for k in range(self.latents.classes):
            own = self.latents.of_class(k, test=test)
            count = min(len(own), most[k])
            first = int(turn * len(own))
            turned = torch.arange(count, device=own.device) * len(own) + first
            picks.append(own[turned // count])
            labels.append(own.new_full((count,), k, dtype=torch.long))
        return torch.cat(picks), torch.cat(labels)


def _mean(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(one[name] for one in found) for name in found[0]}
