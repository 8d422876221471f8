"""What tasks share: how batches are drawn, the judge's random state, the curve of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from keodrift import plots
from keodrift.checks import check_choice, check_positive
from keodrift.errors import OptionError
from keodrift.training import NEGATIVES


@dataclass(frozen=True, kw_only=True)
class Task:
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
        check_positive("evaluate_samples", self.evaluate_samples, integer=True)
        if self.evaluate_samples == 1:
            raise OptionError("evaluate_samples", 1, "two or more: one point has no spread")

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
