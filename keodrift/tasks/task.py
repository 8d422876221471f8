"""What tasks share: how batches are drawn, the judge's random state, the curve of a training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keodrift import plots
from keodrift.checks import check_choice, check_positive
from keodrift.costs import as_cost
from keodrift.errors import OptionError
from keodrift.loss import feature_scale
from keodrift.metrics import subsample
from keodrift.reach import reach_for_gaps
from keodrift.reductions import mean_cost
from keodrift.training import NEGATIVES, BatchSource


def check_count(name: str, count: int) -> None:
    """Checks how many points are to judge a network."""
    check_positive(name, count, integer=True)
    if count == 1:
        raise OptionError(name, 1, "two or more: one point has no spread")


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is trained, and the judge of what was learned.

    Attributes:
        batch: Points a training step, of each class where there are classes.
        balanced: Train on batches that cover noise and data evenly.
        negatives: Who is to repel the samples, as the objective is told.
        data_batch: Data, and fresh draws, a step; as many as samples by default.
        evaluate_samples: Points that judge a network, of each class where there are classes; two
            or more.
        seed: Of the judge: its real points and its noise are the same at every look.
        device: Where the points live.

    Raises:
        OptionError: A number of points is not a positive integer, or one point is to judge.
    """

    batch: int
    balanced: bool = False
    negatives: str = "self"
    data_batch: int | None = None
    evaluate_samples: int
    seed: int = 0
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        check_positive("batch", self.batch, integer=True)
        check_choice("negatives", self.negatives, NEGATIVES)
        if self.data_batch is not None:
            check_positive("data_batch", self.data_batch, integer=True)
        check_count("evaluate_samples", self.evaluate_samples)

    @abstractmethod
    def network_defaults(self) -> dict[str, int]:
        """What a network of the data needs to be told, for the keys of its config: ``auto``."""

    @abstractmethod
    def batches(self, network: nn.Module) -> BatchSource:
        """What trains a network."""

    @abstractmethod
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Numbers for the log."""

    @abstractmethod
    def judge(self, network: nn.Module, folder: Path) -> dict[str, Any]:
        """Judges a trained network, and keeps its samples in a folder."""

    @abstractmethod
    def draw(self, network: nn.Module, history: Sequence[dict[str, float]], folder: Path) -> None:
        """Draws a training and its samples, once the numbers are kept."""

    @abstractmethod
    def _problems(self) -> list[Tensor]:
        """Data of every problem that is solved by itself, ``(n, d)`` each."""

    def reach(
        self, cost: Any = "half_squared", *, relative: bool = False, scaled: bool = False
    ) -> float:
        """The reach with which mass crosses the gaps of the data; see `reach_for_gaps`.

        Args:
            cost: Ground cost; ½‖x−y‖² by default.
            relative: Give it in mean costs of the data, for a drift that is relative as well.
            scaled: Give it for features that a loss scales, as a model like the data has them.

        Returns:
            The largest of any class, where there are classes; one whose points coincide has none.

        Raises:
            OptionError: The points of every class coincide.
        """
        found = []
        clouds = [subsample(points, 2000) for points in self._problems()]
        for cloud in (one for one in clouds if bool((one != one[:1]).any())):
            if scaled:
                cloud = cloud / feature_scale(cloud, cloud).to(cloud.dtype)
            unit = float(mean_cost(cloud, cloud, as_cost(cost))) if relative else 1.0
            found.append(reach_for_gaps(cloud, cost=cost) / unit)
        if not found:
            raise OptionError("drift.reach", "'auto' for points that coincide", "a number, or null")
        return max(found)

    @classmethod
    def check_data(cls, made: type, takes: type) -> None:
        """Refuses data of a type that is not what the task takes.

        Raises:
            OptionError: It is not.
        """
        if not issubclass(made, takes):
            got = f"{made.__name__} for a {cls.__name__}"
            raise OptionError("data", got, f"a {takes.__name__}, or another task")

    def _generator(self, stream: int) -> torch.Generator:
        # Of its own, so that how often one looks changes nothing in the training.
        return torch.Generator(self.device).manual_seed(self.seed + stream)

    @staticmethod
    def _draw_curve(
        history: Sequence[dict[str, float]], floor: float, title: str, folder: Path
    ) -> None:
        """W₂² over the steps of a training, as ``curves.png``."""
        looks = [(row["step"], row["w2_squared"]) for row in history if "w2_squared" in row]
        figure = plots.plot_curves(
            {"generated": ([step for step, _ in looks], [value for _, value in looks])},
            title=title,
            ylabel="$W_2^2$ [length$^2$]",
            floor=floor,
        )
        plots.save_figure(figure, folder / "curves.png")
