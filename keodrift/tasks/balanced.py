"""Batches whose noise and data cover their laws evenly, and which resume exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from keodrift.errors import ShapeError
from keodrift.networks import draw_noise
from keodrift.sampling import Pool, Systematic
from keodrift.training import Batch


def balanced_inputs(
    network: nn.Module, n: int, generator: torch.Generator, labels: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The arguments of a network for one cloud of samples.

    Args:
        network: Its ``noise_dim`` is read.
        n: Samples of the cloud.
        generator: The only source of randomness; decides the device too.
        labels: Their classes ``(n,)``; the noise of every class then covers the normal law by
            itself, scrambled on its own.

    Returns:
        Noise ``(n, noise_dim)``, and the labels where there are any.

    Raises:
        ArgumentError: The network does not state its ``noise_dim``, ``n`` is not positive, or
            there is not one label a sample.

    Example:
        >>> from keodrift.networks import ConditionalMLP
        >>> labels = torch.tensor([0, 1]).repeat(128)
        >>> network, generator = ConditionalMLP(), torch.Generator().manual_seed(0)
        >>> noise, _ = balanced_inputs(network, 256, generator, labels)
        >>> int((noise[labels == 1, 0] > 0).sum())
        64
    """
    if labels is None:
        return (draw_noise(network, n, generator, balanced=True),)
    if labels.shape != (n,):
        raise ShapeError("labels", f"shape {tuple(labels.shape)}", f"one class a sample, ({n},)")
    owners = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels).tolist()
    clouds = [draw_noise(network, size, generator, balanced=True) for size in sizes if size]
    return torch.cat(clouds)[owners.argsort()], labels


class BalancedBatches:
    """A batch source that covers noise and data evenly.

    Args:
        network: Its ``noise_dim`` is read.
        draw_data: Draws real samples ``(M, d)`` and their classes ``(M,)``, or None, from a
            random generator and the samplers.
        samplers: What remembers something between draws.

    Example:
        >>> from keodrift.networks import MLP
        >>> pool = Pool(lambda n, generator: torch.rand(n, 2, generator=generator), size=1024)
        >>> batches = BalancedBatches(MLP(), lambda g: (pool.draw(64, g), None), [pool])
        >>> batches(torch.Generator().manual_seed(0)).inputs[0].shape
        torch.Size([64, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        draw_data: Callable[[torch.Generator], tuple[Tensor, Tensor | None]],
        samplers: Sequence[Pool | Systematic],
    ) -> None:
        self.network, self.draw_data, self.samplers = network, draw_data, tuple(samplers)

    def __call__(self, generator: torch.Generator) -> Batch:
        """Draws the batch of one step; every data point has its sample, and its class."""
        data, labels = self.draw_data(generator)
        inputs = balanced_inputs(self.network, len(data), generator, labels)
        options = {} if labels is None else {"x_labels": labels, "y_labels": labels}
        return Batch(inputs, data, options, balanced=True)

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
