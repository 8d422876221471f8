"""A conditional network of labelled latents: one problem a class."""

from __future__ import annotations

import torch
from torch import nn

from keodrift.data import Latents
from keodrift.networks import draw_noise
from keodrift.training import Batch, BatchSource


def latent_batches(network: nn.Module, latents: Latents, per_class: int) -> BatchSource:
    """Labelled latents and as many noise vectors of every class: one problem a class.

    Args:
        network: A conditional network; its ``noise_dim`` is read.
        latents: Where the data come from.
        per_class: Points of each class a step, on either side.

    Example:
        >>> from keodrift.data import load_digits_latents
        >>> from keodrift.networks import ConditionalMLP
        >>> draw = latent_batches(ConditionalMLP(dim=6), load_digits_latents(6), per_class=4)
        >>> draw(torch.Generator().manual_seed(0)).data.shape
        torch.Size([40, 6])
    """

    def draw(generator: torch.Generator) -> Batch:
        data, labels = (part.to(generator.device) for part in latents.draw(per_class, generator))
        noise = draw_noise(network, len(labels), generator)
        return Batch((noise, labels), data, {"x_labels": labels, "y_labels": labels})

    return draw
