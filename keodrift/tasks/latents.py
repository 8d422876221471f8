"""A conditional network of labelled latents: its batches, and how close it comes to the data."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keodrift import plots
from keodrift.checks import check_choice, check_positive
from keodrift.data import Latents
from keodrift.errors import OptionError
from keodrift.files import atomic_path
from keodrift.metrics import (
    class_nearest_neighbour_test,
    class_variance_ratio,
    class_wasserstein_squared,
)
from keodrift.networks import sample
from keodrift.sampling import Systematic, neighbour_order
from keodrift.tasks.guidance import Guidance, GuidedBatches
from keodrift.tasks.sources import BalancedBatches, labelled, network_inputs, thinned, with_fresh
from keodrift.tasks.task import Task
from keodrift.training import NEGATIVES, Batch, BatchSource
from keodrift.vision import accuracy


def latent_batches(
    network: nn.Module,
    latents: Latents,
    per_class: int,
    *,
    balanced: bool = False,
    negatives: str = "self",
    data_per_class: int | None = None,
    guidance: Guidance | None = None,
) -> BatchSource:
    """Labelled latents and as many noise vectors of every class: one problem a class.

    Args:
        network: A conditional network; its ``noise_dim`` is read.
        latents: Where the data come from.
        per_class: Points of each class a step, on either side.
        balanced: Noise and data that cover each class evenly (`BalancedBatches`): its latents are
            drawn along an order of neighbours, each once before any comes again. Otherwise all
            draws are independent.
        negatives: Who is to repel the samples, as the objective is told; ``"fresh"`` adds inputs
            for other draws, as many as data.
        data_per_class: Data of each class a step, where they, and fresh draws, are to outnumber the
            samples: a quieter field, for a pass without gradients. As many by default.
        guidance: Lets data of any class repel too, by a strength ω that the network is told; none
            by default.

    Raises:
        OptionError: A network is to be guided that takes no ω, ``per_class`` is not a positive
            integer, or ``negatives`` unknown.

    Example:
        >>> from keodrift.data import load_digits_latents
        >>> from keodrift.networks import ConditionalMLP
        >>> draw = latent_batches(ConditionalMLP(dim=6), load_digits_latents(6), per_class=4)
        >>> draw(torch.Generator().manual_seed(0)).data.shape
        torch.Size([40, 6])
    """
    check_positive("per_class", per_class, integer=True)
    check_choice("negatives", negatives, NEGATIVES)
    drawn = per_class if data_per_class is None else data_per_class
    check_positive("data_per_class", drawn, integer=True)
    if guidance is not None:
        if not getattr(network, "guidance_dim", 0):
            raise OptionError("guidance", guidance, "a network with guidance (guidance_dim > 0)")

        def any_class(n: int, generator: torch.Generator) -> Tensor:
            chosen = torch.randint(
                len(latents.train), (n,), generator=generator, device=generator.device
            )
            return latents.train[chosen.to(latents.train.device)].to(generator.device)

        plain = latent_batches(
            network,
            latents,
            per_class,
            balanced=balanced,
            negatives=negatives,
            data_per_class=data_per_class,
        )
        return GuidedBatches(plain, any_class, guidance)
    if balanced:
        return _balanced(network, latents, (per_class, drawn), negatives)

    def draw(generator: torch.Generator) -> Batch:
        data, labels = (part.to(generator.device) for part in latents.draw(drawn, generator))
        own = thinned(labels, per_class * latents.classes)
        inputs = network_inputs(network, len(own), generator, own)
        batch = labelled(inputs, data, labels)
        return with_fresh(batch, network, generator) if negatives == "fresh" else batch

    return draw


def _balanced(
    network: nn.Module, latents: Latents, sizes: tuple[int, int], negatives: str
) -> BalancedBatches:
    per_class, drawn = sizes
    members = [torch.nonzero(latents.train_labels == c).squeeze(-1) for c in range(latents.classes)]
    samplers = [Systematic(index[neighbour_order(latents.train[index])]) for index in members]

    def draw_data(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.cat([sampler.draw(n, generator) for sampler in samplers])
        data, labels = latents.train[chosen], latents.train_labels[chosen]
        return data.to(generator.device), labels.to(generator.device)

    share = per_class / drawn
    return BalancedBatches(network, draw_data, drawn, samplers, samples=share, negatives=negatives)


@dataclass(frozen=True)
class LatentTask(Task):
    """Labelled latents to learn, and the judge of what was learned.

    Numbers of points are those of each class; the other attributes are as for `Task`.

    Attributes:
        latents: Where the data come from.
        guidance: Lets data of any class repel too; none by default.
        classifier: Reads classes off decoded samples, images ``(n, H, W)`` to logits; none by
            default.

    Raises:
        OptionError: As for `Task`, or there is a classifier for latents that nothing decodes.

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

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        super().__post_init__()
        if self.classifier is not None and self.latents.decode is None:
            raise OptionError("classifier", "latents without decode", "latents with it, or None")

    def batches(self, network: nn.Module) -> BatchSource:
        """What trains a network; see `latent_batches`."""
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
        """A sample of each class ``(n,)`` at ω = 1, from the same noise at every call."""
        points = sample(network, len(labels), self._generator(2), labels=labels.to(self.device))
        return points.to(self.latents.test.device)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Numbers for the log: W₂² to the held-out latents of a class, in the mean over classes."""
        labels = torch.arange(self.latents.classes).repeat_interleave(self.evaluate_samples)
        found = class_wasserstein_squared(
            self.sample(network, labels), labels, *self._test, cap=self.evaluate_samples
        )
        return {"w2_squared": statistics.fmean(found.values())}

    def judge(
        self, network: nn.Module, history: Sequence[dict[str, float]], folder: Path
    ) -> dict[str, Any]:
        """Judges a trained network by as many samples as held-out latents, and draws them.

        Args:
            network: The network.
            history: The log of its training.
            folder: Where ``curves.png``, ``samples.png`` and ``samples.npz`` go.

        Returns:
            Means over classes: ``w2_squared``, ``w2_relative`` (over the variance of the class),
            ``variance_ratio`` and ``nearest_neighbour`` (½ is indistinguishable), and where there
            is a classifier ``accuracy``; each again as ``…_floor``, which is what training latents
            score; then ``w2_squared_by_class``.
        """
        labels = self.latents.test_labels
        points = self.sample(network, labels)
        scores, by_class = self._scores(points, labels)
        result: dict[str, Any] = {**scores, "w2_squared_by_class": by_class}
        floor, _ = self._scores(*self._train_like_test())
        result |= {f"{name}_floor": value for name, value in floor.items()}
        title = "$W_2^2$ of a class falls towards what real latents score"
        self._draw_curve(history, result["w2_squared_floor"], title, folder)
        plots.save_figure(self._shown(points, labels), folder / "samples.png")
        with atomic_path(folder / "samples.npz") as draft:
            np.savez(draft, generated=points.cpu().numpy(), labels=labels.cpu().numpy())
        return result

    @property
    def _test(self) -> tuple[Tensor, Tensor]:
        return self.latents.test, self.latents.test_labels

    def _scores(self, points: Tensor, labels: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        clouds = (points, labels, *self._test)
        w2 = class_wasserstein_squared(*clouds, cap=len(labels))
        sizes = {k: float(self.latents.of_class(k, test=True).double().var(0).sum()) for k in w2}
        measures = {
            "w2_squared": w2,
            "w2_relative": {k: w2[k] / sizes[k] for k in w2},
            "variance_ratio": class_variance_ratio(*clouds),
            "nearest_neighbour": class_nearest_neighbour_test(*clouds),
        }
        means = {name: statistics.fmean(found.values()) for name, found in measures.items()}
        if self.classifier is not None and self.latents.decode is not None:
            means["accuracy"] = accuracy(self.classifier, self.latents.decode(points), labels)
        return means, {self.latents.class_names[k]: value for k, value in w2.items()}

    def _train_like_test(self) -> tuple[Tensor, Tensor]:
        """Training latents, of each class as many as are held out, or all there are."""
        picks, labels = [], []
        for k in range(self.latents.classes):
            own, held = self.latents.of_class(k), len(self.latents.of_class(k, test=True))
            count = min(len(own), held)
            picks.append(own[torch.arange(count) * len(own) // count])
            labels.append(torch.full((count,), k))
        return torch.cat(picks), torch.cat(labels)

    def _shown(self, points: Tensor, labels: Tensor) -> Any:
        """Images of every class beside real ones, or the two leading directions."""
        latents, real, count = self.latents, self.latents.test, 8
        if latents.decode is not None and latents.image_shape is not None:
            rows = []
            for k, name in enumerate(latents.class_names):
                own, theirs = points[labels == k], real[latents.test_labels == k]
                shown = torch.cat(
                    [cloud[torch.arange(count) % len(cloud)] for cloud in (own, theirs)]
                )
                rows.append((name, latents.decode(shown)))
            title = "Generated images, one pass each, beside real ones"
            return plots.plot_image_rows(rows, title=title, split=count)
        if latents.dim == 1:
            axes = torch.tensor([[1.0, 0.0]], dtype=real.dtype)
        else:
            axes = torch.linalg.svd(real - real.mean(0), full_matrices=False).Vh[:2].mT
        title = "Generated latents should cover the real ones, in two leading directions"
        return plots.plot_samples({"generated": points @ axes}, real @ axes, title=title)
