"""Classifier-free guidance: unconditional data repel too, the more the larger ω."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from keodrift.checks import check_positive
from keodrift.errors import OptionError
from keodrift.loss import guidance_weight
from keodrift.training import Batch, BatchSource
from keodrift.training.state import Stateful


@dataclass(frozen=True)
class Guidance:
    """How strong guidance is in training: ω has a density like ω^−power on [1, most].

    Attributes:
        unconditional: Data of any class that repel in every class, a step.
        most: Largest ω; 1 is no guidance.
        power: How much rarer large ω are; 0 draws them evenly.

    Raises:
        OptionError: ``unconditional`` is not a positive integer, ``most`` below 1, or ``power``
            negative.

    Reference:
        Deng et al., "Generative Modeling via Drifting", arXiv 2602.04770; the numbers are those of
        the MNIST protocol of "Sinkhorn drifting", arXiv 2603.12366.

    Example:
        >>> Guidance(most=1.0).omega(torch.Generator())
        1.0
    """

    unconditional: int = 16
    most: float = 4.0
    power: float = 3.0

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        check_positive("unconditional", self.unconditional, integer=True)
        check_positive("most", self.most)
        if self.most < 1:
            raise OptionError("most", self.most, "a guidance strength of at least 1")
        if not self.power >= 0:
            raise OptionError("power", self.power, "a number that is not negative")

    def omega(self, generator: torch.Generator) -> float:
        """Draws ω, by the inverse of its distribution."""
        share = float(torch.rand((), generator=generator, device=generator.device))
        if self.power == 1:
            return float(self.most) ** share
        rest = 1 - self.power
        return (1 + share * (self.most**rest - 1)) ** (1 / rest)


class GuidedBatches:
    """A batch source with guidance: one ω a step, which the network is told.

    Args:
        batches: The labelled batches, of every class as many samples.
        draw: Draws so many data of any class with a random generator, ``(U, d)``.
        guidance: How strong.
        crossed: Whether the two halves of a class repel each other: either has half the repellers.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> def plain(generator):
        ...     options = {"x_labels": labels, "y_labels": labels}
        ...     return Batch((torch.zeros(4, 2), labels), torch.ones(4, 2), options)
        >>> guided = GuidedBatches(plain, lambda n, generator: torch.zeros(n, 2), Guidance(8))
        >>> batch = guided(torch.Generator().manual_seed(0))
        >>> batch.options["negatives"].shape, len(batch.inputs)
        (torch.Size([8, 2]), 3)
    """

    def __init__(
        self,
        batches: BatchSource,
        draw: Callable[[int, torch.Generator], Tensor],
        guidance: Guidance,
        *,
        crossed: bool = False,
    ) -> None:
        self.batches: Any = batches
        self.draw, self.guidance, self.crossed = draw, guidance, crossed

    def __call__(self, generator: torch.Generator) -> Batch:
        """Draws the batch of one step."""
        batch: Batch = self.batches(generator)
        omega, count = self.guidance.omega(generator), self.guidance.unconditional
        repel = batch.options.get("model_labels", batch.options["x_labels"])
        each = len(repel) // len(torch.unique(repel)) // (2 if self.crossed else 1)
        u = self.draw(count, generator).to(batch.data.dtype)
        weights = u.new_full((count,), guidance_weight(omega, each, count))

        def told(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (*inputs, inputs[0].new_full((len(inputs[0]),), omega)) if inputs else ()

        return replace(
            batch,
            inputs=told(batch.inputs),
            model_inputs=told(batch.model_inputs),
            options={**batch.options, "negatives": u, "negative_weights": weights},
        )

    def state_dict(self) -> dict[str, Any]:
        """What the batches remember, if they do."""
        return self.batches.state_dict() if isinstance(self.batches, Stateful) else {}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Goes on there."""
        if isinstance(self.batches, Stateful):
            self.batches.load_state_dict(state_dict)
