"""What trains a conditional network: labelled latents, and as much noise of every class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keodrift.checks import check_choice, check_positive
from keodrift.data import Latents
from keodrift.errors import OptionError
from keodrift.sampling import Systematic, neighbour_order
from keodrift.tasks.guidance import Guidance, GuidedBatches
from keodrift.tasks.sources import (
    BalancedBatches,
    labelled,
    network_inputs,
    refuse_uncrossed,
    thinned,
    with_fresh,
)
from keodrift.training import NEGATIVES, Batch, BatchSource


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
            integer, or ``negatives`` unknown, or crossed for other numbers of samples and data.

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
    refuse_uncrossed(negatives, per_class, drawn)
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
        return GuidedBatches(plain, any_class, guidance, crossed=negatives == "crossed")
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
    samplers = [
        Systematic(index[neighbour_order(latents.train[index])]) for index in latents.members
    ]

    def draw_data(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.cat([sampler.draw(n, generator) for sampler in samplers])
        data, labels = latents.train[chosen], latents.train_labels[chosen]
        return data.to(generator.device), labels.to(generator.device)

    share = per_class / drawn
    return BalancedBatches(network, draw_data, drawn, samplers, samples=share, negatives=negatives)
