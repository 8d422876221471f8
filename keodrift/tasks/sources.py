"""What batch sources share: noise for the data at hand, other draws, and even batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from keodrift.errors import OptionError, ShapeError
from keodrift.networks import draw_noise
from keodrift.sampling import Pool, Systematic
from keodrift.training import Batch


def network_inputs(
    network: nn.Module,
    n: int,
    generator: torch.Generator,
    labels: Tensor | None = None,
    *,
    balanced: bool = False,
) -> tuple[Tensor, ...]:
    """The arguments of a network for one cloud of samples.

    Args:
        network: Its ``noise_dim`` is read.
        n: Samples of the cloud.
        generator: The only source of randomness; decides the device too.
        labels: Their classes ``(n,)``.
        balanced: Noise that covers the normal law evenly, that of every class by itself, each
            scrambled on its own; otherwise independent draws.

    Returns:
        Noise ``(n, noise_dim)``, and the labels where there are any.

    Raises:
        ArgumentError: The network does not state its ``noise_dim``, ``n`` is not positive, or
            there is not one label a sample.

    Example:
        >>> from keodrift.networks import ConditionalMLP
        >>> labels = torch.tensor([0, 1]).repeat(128)
        >>> network, generator = ConditionalMLP(), torch.Generator().manual_seed(0)
        >>> noise, _ = network_inputs(network, 256, generator, labels, balanced=True)
        >>> int((noise[labels == 1, 0] > 0).sum())
        64
    """
    if labels is None:
        return (draw_noise(network, n, generator, balanced=balanced),)
    if labels.shape != (n,):
        raise ShapeError("labels", f"shape {tuple(labels.shape)}", f"one class a sample, ({n},)")
    if not balanced:
        return draw_noise(network, n, generator), labels
    owners = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels).tolist()
    clouds = [draw_noise(network, size, generator, balanced=True) for size in sizes if size]
    return torch.cat(clouds)[owners.argsort()], labels


def labelled(inputs: tuple[Tensor, ...], data: Tensor, labels: Tensor | None) -> Batch:
    """The batch of these inputs and data, whose classes are ``labels`` where there are any.

    Data come in the dtype of the noise, which is the network's.
    """
    options = {} if labels is None else {"x_labels": inputs[1], "y_labels": labels}
    return Batch(inputs, data.to(inputs[0].dtype), options)


def thinned(labels: Tensor, n: int) -> Tensor:
    """Classes ``(n,)`` of samples for data of the classes ``labels``, evenly picked among them."""
    if n == len(labels):
        return labels
    return labels[torch.arange(n, device=labels.device) * len(labels) // n]


def with_fresh(batch: Batch, network: nn.Module, generator: torch.Generator) -> Batch:
    """The batch with inputs for other draws of the network, as many as data of every class."""
    labels = batch.options.get("y_labels")
    drawn = network_inputs(network, len(batch.data), generator, labels, balanced=batch.balanced)
    options = batch.options if labels is None else {**batch.options, "model_labels": labels}
    return replace(batch, model_inputs=drawn, options=options)


def refuse_uncrossed(negatives: str, samples: int, data: int) -> None:
    """Refuses halves that would meet other numbers of data than they have repellers.

    Raises:
        OptionError: They are crossed, and there are not as many data as samples.
    """
    if negatives == "crossed" and samples != data:
        got = f"'crossed' for {samples} samples and {data} data"
        raise OptionError("negatives", got, "as many data as samples, or 'fresh'")


class BalancedBatches:
    """A batch source that covers noise and data evenly.

    Args:
        network: Its ``noise_dim`` is read.
        draw_data: Draws real samples ``(M, d)`` of a size, and their classes ``(M,)`` or None,
            with a random generator and the samplers.
        size: What it is asked for at each step.
        samplers: What remembers something between draws.
        samples: Samples for every point of data, 1 by default; fewer where data, and fresh draws,
            are to outnumber them.
        negatives: Who is to repel the samples: ``"fresh"`` draws, each cloud evenly by itself; for
            ``"crossed"`` halves, they and their data are drawn by halves.

    Example:
        >>> from keodrift.networks import MLP
        >>> pool = Pool(lambda n, generator: torch.rand(n, 2, generator=generator), size=1024)
        >>> draw = lambda n, generator: (pool.draw(n, generator), None)
        >>> batches = BalancedBatches(MLP(), draw, 64, [pool], negatives="fresh")
        >>> batches(torch.Generator().manual_seed(0)).model_inputs[0].shape
        torch.Size([64, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        draw_data: Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]],
        size: int,
        samplers: Sequence[Pool | Systematic],
        *,
        samples: float = 1.0,
        negatives: str = "self",
    ) -> None:
        self.network, self.draw_data, self.size = network, draw_data, size
        self.samplers, self.samples, self.negatives = tuple(samplers), samples, negatives

    def __call__(self, generator: torch.Generator) -> Batch:
        """Draws the batch of one step."""
        halves = [self.size // 2, self.size - self.size // 2]
        sizes = [n for n in halves if n] if self.negatives == "crossed" else [self.size]
        clouds = [self._cloud(n, generator) for n in sizes]
        data, labels, inputs = zip(*clouds, strict=True)
        batch = labelled(
            tuple(map(torch.cat, zip(*inputs, strict=True))),
            torch.cat(data),
            None if labels[0] is None else torch.cat(labels),
        )
        batch = replace(batch, balanced=True)
        fresh = self.negatives == "fresh"
        return with_fresh(batch, self.network, generator) if fresh else batch

    def _cloud(
        self, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        data, labels = self.draw_data(n, generator)
        count = round(self.samples * len(data))
        own = None if labels is None else thinned(labels, count)
        return data, labels, network_inputs(self.network, count, generator, own, balanced=True)

    def state_dict(self) -> dict[str, Any]:
        """What is left of the samplers' epochs."""
        return {"samplers": [sampler.state_dict() for sampler in self.samplers]}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Goes on in those epochs.

        Raises:
            ValueError: The state is of other samplers.
        """
        for sampler, state in zip(self.samplers, state_dict["samplers"], strict=True):
            sampler.load_state_dict(state)
