"""A network of a 2D target: its batches, and how close its samples come to the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keodrift import plots
from keodrift.checks import check_choice, check_positive
from keodrift.data import Target
from keodrift.errors import OptionError
from keodrift.exports import KNOWN
from keodrift.files import atomic_path
from keodrift.metrics import (
    mode_coverage,
    nearest_neighbour_test,
    variance_ratio,
    wasserstein_squared,
)
from keodrift.networks import ConditionalMLP, draw_noise, sample
from keodrift.sampling import Pool
from keodrift.tasks.sources import BalancedBatches, labelled, refuse_uncrossed, thinned, with_fresh
from keodrift.tasks.task import Task
from keodrift.training import NEGATIVES, Batch, BatchSource


def target_batches(
    network: nn.Module,
    target: Target,
    size: int,
    *,
    balanced: bool = False,
    negatives: str = "self",
    data_size: int | None = None,
) -> BatchSource:
    """Fresh points of a 2D target and as many fresh noise vectors, every step.

    Args:
        network: Its ``noise_dim`` is read. A `ConditionalMLP` gets the nearest mode of each point
            as its class, and every class is a problem of its own.
        target: What it should learn.
        size: Points a step.
        balanced: Noise and data that cover their laws evenly (`BalancedBatches`), the data out of
            a `Pool`. Otherwise all draws are independent.
        negatives: Who is to repel the samples, as the objective is told; ``"fresh"`` adds inputs
            for other draws, as many as data.
        data_size: Data a step, where they, and fresh draws, are to outnumber the samples: a quieter
            field, for a pass without gradients. As many by default.

    Raises:
        OptionError: ``size`` is not a positive integer, ``negatives`` are unknown, or crossed for
            other numbers of samples and data or for classes drawn by chance, or a conditional
            network has not one class a mode.

    Example:
        >>> from keodrift.data import get_target
        >>> from keodrift.networks import MLP
        >>> draw = target_batches(MLP(), get_target("spiral"), 32)
        >>> draw(torch.Generator().manual_seed(0)).data.shape
        torch.Size([32, 2])
    """
    check_positive("size", size, integer=True)
    check_choice("negatives", negatives, NEGATIVES)
    drawn = size if data_size is None else data_size
    check_positive("data_size", drawn, integer=True)
    classes = network.classes if isinstance(network, ConditionalMLP) else None
    modes = 0 if target.modes is None else len(target.modes)
    if classes not in (None, modes):
        needs = f"one class a mode; {target.name} has {modes} modes"
        raise OptionError("network", f"{classes} classes", needs)
    refuse_uncrossed(negatives, size, drawn)
    if balanced:
        return _balanced(network, target, (size, drawn), negatives, classes is not None)
    if negatives == "crossed" and classes is not None:
        needs = "'fresh', or balanced batches: of a class drawn by chance there may be a single one"
        raise OptionError("negatives", "'crossed' for independent batches of classes", needs)

    def draw(generator: torch.Generator) -> Batch:
        inputs: tuple[Tensor, ...] = (draw_noise(network, size, generator),)
        data, labels = target.sample(drawn, generator), None
        if classes is not None:
            labels = target.nearest_mode(data)
            inputs = (*inputs, thinned(labels, size))
        batch = labelled(inputs, data, labels)
        return with_fresh(batch, network, generator) if negatives == "fresh" else batch

    return draw


def _balanced(
    network: nn.Module, target: Target, sizes: tuple[int, int], negatives: str, conditional: bool
) -> BalancedBatches:
    size, drawn = sizes
    pool = Pool(target.sample)

    def draw_data(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        data = pool.draw(n, generator)
        return data, target.nearest_mode(data) if conditional else None

    share = size / drawn
    return BalancedBatches(network, draw_data, drawn, [pool], samples=share, negatives=negatives)


@dataclass(frozen=True)
class PlanarTask(Task):
    """A 2D target to learn, and the judge of what was learned.

    The other attributes are as for `Task`; the cost of the exact W₂² of ``evaluate_samples`` points
    grows like their cube.

    Attributes:
        target: The target.

    Raises:
        OptionError: As for `Task`, or ``target`` is none.

    Example:
        >>> from keodrift.data import get_target
        >>> from keodrift.networks import MLP
        >>> task = PlanarTask(get_target("two_moons"), evaluate_samples=100)
        >>> sorted(task.evaluate(MLP()))
        ['w2_squared']
    """

    target: Target
    _: KW_ONLY
    batch: int = 1024
    evaluate_samples: int = 1000

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        self.check_data(type(self.target), Target)
        super().__post_init__()

    def network_defaults(self) -> dict[str, int]:
        """Two dimensions, and a class a mode for a network that is told classes."""
        modes = 1 if self.target.modes is None else len(self.target.modes)
        return {"noise_dim": 2, "dim": 2, "classes": modes, "guidance_dim": 0}

    def batches(self, network: nn.Module) -> BatchSource:
        """What trains a network; see `target_batches`.

        Raises:
            OptionError: A network of this library makes something else than points in the plane.
        """
        if isinstance(network, KNOWN) and network.dim != 2:
            raise OptionError("network", f"{type(network).__name__} with dim={network.dim}", "2")
        return target_batches(
            network,
            self.target,
            self.batch,
            balanced=self.balanced,
            negatives=self.negatives,
            data_size=self.data_batch,
        )

    def _problems(self) -> list[Tensor]:
        return [self.target.sample(2000, self._generator(4))]

    def sample(self, network: nn.Module) -> Tensor:
        """Samples of a network, ``(evaluate_samples, 2)``, from the same noise at every call."""
        count, labels = self.evaluate_samples, None
        if isinstance(network, ConditionalMLP):
            labels = self.target.nearest_mode(self.target.sample(count, self._generator(3)))
        return sample(network, count, self._generator(2), labels=labels).to(self._real[0].dtype)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Numbers for the log: W₂² between samples and real points, in squared length."""
        return {"w2_squared": self._distance(self.sample(network), self._real[0])}

    def judge(self, network: nn.Module, folder: Path) -> dict[str, Any]:
        """Judges a trained network, and keeps its samples.

        Args:
            network: The network.
            folder: Where ``samples.npz`` goes.

        Returns:
            ``w2_squared``, ``variance_ratio`` and ``nearest_neighbour`` (½ is indistinguishable)
            to real points; for a target with modes ``wrong_mass``, too; each again as
            ``…_floor``, which is what other real points score. Then, for a target with modes,
            ``modes``, ``covered`` and ``stray``.
        """
        samples, (real, _) = self.sample(network), self._real
        result: dict[str, Any] = self._scores(samples)
        result |= {f"{name}_floor": value for name, value in self._floor.items()}
        modes = self.target.modes
        if modes is not None:
            coverage = mode_coverage(samples, modes, self.target.mode_radius)
            result |= {"modes": len(modes), "covered": coverage.covered, "stray": coverage.stray}
        with atomic_path(folder / "samples.npz") as draft:
            np.savez(draft, generated=samples.cpu().numpy(), real=real.cpu().numpy())
        return result

    def draw(self, network: nn.Module, history: Sequence[dict[str, float]], folder: Path) -> None:
        """Draws a training and its samples.

        Args:
            network: The network.
            history: The log of its training.
            folder: Where ``curves.png`` and ``samples.png`` go.
        """
        title = "$W_2^2$ to the target falls towards what real samples score"
        self._draw_curve(history, self._floor["w2_squared"], title, folder)
        title = "Generated points should cover the data"
        figure = plots.plot_samples({"generated": self.sample(network)}, self._real[0], title=title)
        plots.save_figure(figure, folder / "samples.png")

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        generator = self._generator(1)
        first, second = (self.target.sample(self.evaluate_samples, generator) for _ in range(2))
        return first, second

    @cached_property
    def _floor(self) -> dict[str, float]:
        """What other real points score."""
        return self._scores(self._real[1])

    def _scores(self, points: Tensor) -> dict[str, float]:
        real, modes = self._real[0], self.target.modes
        scores = {
            "w2_squared": self._distance(points, real),
            "variance_ratio": variance_ratio(points, real),
            "nearest_neighbour": nearest_neighbour_test(points, real, cap=self.evaluate_samples),
        }
        if modes is not None:
            coverage = mode_coverage(points, modes, self.target.mode_radius)
            scores["wrong_mass"] = coverage.wrong_mass
        return scores

    def _distance(self, x: Tensor, y: Tensor) -> float:
        return wasserstein_squared(x, y, cap=self.evaluate_samples)
