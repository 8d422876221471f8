"""What one training step is fed: noise for the generator and real samples for the drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from keodrift.data.digits import Latents
from keodrift.data.targets import sample_target
from keodrift.generators import draw_noise


@dataclass(frozen=True)
class Batch:
    """What one training step needs.

    Attributes:
        inputs: Arguments of the generator: noise, and classes if it takes them.
        data: Real samples ``(M, d)``.
        options: Keyword arguments of the drift: labels, weights, negatives.
    """

    inputs: tuple[Tensor, ...]
    data: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)


BatchSource = Callable[[torch.Generator], Batch]


def target_batches(network: nn.Module, target: str, size: int) -> BatchSource:
    """Fresh points of a 2D target and as many fresh noise vectors, every step.

    Args:
        network: The generator; its ``noise_dim`` is read.
        target: A name in `keodrift.data.TARGETS`.
        size: Points a step.

    Example:
        >>> from keodrift.generators import MLP
        >>> batch = target_batches(MLP(), "spiral", 32)(torch.Generator().manual_seed(0))
        >>> batch.data.shape
        torch.Size([32, 2])
    """

    def draw(generator: torch.Generator) -> Batch:
        noise = draw_noise(network, size, generator)
        return Batch((noise,), sample_target(target, size, generator))

    return draw


def latent_batches(network: nn.Module, latents: Latents, per_class: int) -> BatchSource:
    """Labelled latents and as many noise vectors of every class: one problem a class.

    Args:
        network: A conditional generator; its ``noise_dim`` is read.
        latents: Where the data come from.
        per_class: Points of each class a step, on either side.

    Example:
        >>> from keodrift.data import load_digits_latents
        >>> from keodrift.generators import ConditionalMLP
        >>> draw = latent_batches(ConditionalMLP(dim=6), load_digits_latents(6), per_class=4)
        >>> draw(torch.Generator().manual_seed(0)).data.shape
        torch.Size([40, 6])
    """

    def draw(generator: torch.Generator) -> Batch:
        data, labels = latents.draw(per_class, generator)
        noise = draw_noise(network, len(labels), generator)
        return Batch((noise, labels), data, {"x_labels": labels, "y_labels": labels})

    return draw
