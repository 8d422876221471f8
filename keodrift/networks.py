"""Small networks from noise to samples.

Their weights are decided by ``seed`` and leave torch's global random state as it was; they are made
in float32 on the CPU, whatever torch's defaults are. ``settings`` are the keyword arguments that a
network was made with.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from keodrift.checks import check_labels, check_positive
from keodrift.drifts.draws import seeded
from keodrift.errors import ArgumentError, DeviceError, OptionError, ShapeError
from keodrift.sampling import balanced_normal


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        check_positive(name, size, integer=True)


class MLP(nn.Module):
    """A plain multilayer perceptron, the two-layer setting of the 2D experiments by default.

    Args:
        noise_dim: Dimension of the noise.
        dim: Dimension of the samples.
        width: Width of the hidden layers.
        hidden: Number of hidden layers.
        seed: Decides the initial weights.

    Raises:
        OptionError: A size is not a positive integer.

    Reference:
        Sinkhorn drifting, §5.2: a two-layer MLP R² → R².

    Example:
        >>> network = MLP(noise_dim=2, dim=2)
        >>> network(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, noise_dim: int = 2, dim: int = 2, width: int = 256, hidden: int = 2, seed: int = 0
    ) -> None:
        _check_sizes(noise_dim=noise_dim, dim=dim, width=width, hidden=hidden)
        super().__init__()
        self.settings = {
            "noise_dim": noise_dim,
            "dim": dim,
            "width": width,
            "hidden": hidden,
            "seed": seed,
        }
        self.noise_dim, self.dim = noise_dim, dim
        with seeded(seed):
            widths = [noise_dim] + [width] * hidden
            layers: list[nn.Module] = []
            for fan_in, fan_out in itertools.pairwise(widths):
                layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], dim))

    def forward(self, noise: Tensor) -> Tensor:
        """Noise ``(n, noise_dim)`` to samples ``(n, dim)``."""
        return self.layers(noise)


class _Block(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.norm = nn.LayerNorm(width)
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.leave(nn.functional.silu(self.enter(self.norm(x))))


class ResidualMLP(nn.Module):
    """Residual perceptron whose samples start at almost one point.

    Args:
        noise_dim: Dimension of the noise.
        dim: Dimension of the samples.
        width: Width of the blocks.
        blocks: Number of residual blocks.
        residual_scale: Factor on each block's contribution.
        output_std: Standard deviation of the output layer's initial weights; small, so that
            training starts from a tight cloud around the origin.
        seed: Decides the initial weights.

    Raises:
        OptionError: A size is not a positive integer.

    Example:
        >>> network = ResidualMLP(width=32, blocks=2)
        >>> float(network(torch.zeros(5, 16)).detach().abs().max()) < 0.1
        True
    """

    def __init__(
        self,
        noise_dim: int = 16,
        dim: int = 2,
        width: int = 256,
        blocks: int = 6,
        residual_scale: float = 0.9,
        output_std: float = 1e-3,
        seed: int = 0,
    ) -> None:
        _check_sizes(noise_dim=noise_dim, dim=dim, width=width, blocks=blocks)
        super().__init__()
        self.settings = {
            "noise_dim": noise_dim,
            "dim": dim,
            "width": width,
            "blocks": blocks,
            "residual_scale": residual_scale,
            "output_std": output_std,
            "seed": seed,
        }
        self.noise_dim, self.dim = noise_dim, dim
        with seeded(seed):
            self.enter = nn.Linear(noise_dim, width)
            self.blocks = nn.Sequential(*(_Block(width, residual_scale) for _ in range(blocks)))
            self.norm = nn.LayerNorm(width)
            self.leave = nn.Linear(width, dim)
            nn.init.normal_(self.leave.weight, std=output_std)
            nn.init.zeros_(self.leave.bias)

    def forward(self, noise: Tensor) -> Tensor:
        """Noise ``(n, noise_dim)`` to samples ``(n, dim)``."""
        return self.leave(self.norm(self.blocks(self.enter(noise))))


class ConditionalMLP(nn.Module):
    """Perceptron from noise and a class, and optionally a guidance strength, to a sample.

    Args:
        noise_dim: Dimension of the noise.
        dim: Dimension of the samples.
        classes: Number of classes.
        class_dim: Width of the class embedding.
        guidance_dim: Width of the embedding of ω; 0 leaves guidance out.
        width: Width of the hidden layers.
        hidden: Number of hidden layers.
        seed: Decides the initial weights.

    Raises:
        OptionError: A size is not a positive integer.

    Reference:
        Sinkhorn drifting, the MNIST network: noise 6, embeddings 32, 3 layers of 256, ReLU.

    Example:
        >>> network = ConditionalMLP(noise_dim=6, dim=6, classes=10)
        >>> network(torch.zeros(4, 6), torch.tensor([0, 1, 2, 3])).shape
        torch.Size([4, 6])
    """

    def __init__(
        self,
        noise_dim: int = 6,
        dim: int = 6,
        classes: int = 10,
        class_dim: int = 32,
        guidance_dim: int = 0,
        width: int = 256,
        hidden: int = 3,
        seed: int = 0,
    ) -> None:
        _check_sizes(noise_dim=noise_dim, dim=dim, classes=classes, class_dim=class_dim)
        if guidance_dim != 0:
            _check_sizes(guidance_dim=guidance_dim)
        super().__init__()
        self.settings = {
            "noise_dim": noise_dim,
            "dim": dim,
            "classes": classes,
            "class_dim": class_dim,
            "guidance_dim": guidance_dim,
            "width": width,
            "hidden": hidden,
            "seed": seed,
        }
        self.noise_dim, self.dim, self.classes = noise_dim, dim, classes
        self.guidance_dim = guidance_dim
        with seeded(seed):
            self.embedding = nn.Embedding(classes, class_dim)
            if guidance_dim:
                self.guidance = nn.Sequential(nn.Linear(1, guidance_dim), nn.SiLU())
        self.body = MLP(noise_dim + class_dim + guidance_dim, dim, width, hidden, seed + 1)

    def forward(self, noise: Tensor, labels: Tensor, omega: Tensor | float = 1.0) -> Tensor:
        """Noise ``(n, noise_dim)``, classes ``(n,)`` and ω ``(n,)`` to samples ``(n, dim)``."""
        parts = [noise, self.embedding(labels)]
        if self.guidance_dim:
            strength = torch.as_tensor(omega, dtype=noise.dtype, device=noise.device)
            # log ω is 0 at ω = 1, where guidance is off.
            parts.append(self.guidance(strength.expand(len(noise)).unsqueeze(-1).log()))
        return self.body(torch.cat(parts, dim=-1))


def draw_noise(
    network: nn.Module, n: int, generator: torch.Generator, *, balanced: bool = False
) -> Tensor:
    """Standard normal noise of the width that a network expects.

    Args:
        network: A module with an attribute ``noise_dim``.
        n: How many rows.
        generator: The only source of randomness; decides the device too.
        balanced: Rows that cover the normal law evenly together (`balanced_normal`) in place of
            independent ones.

    Returns:
        ``(n, noise_dim)`` in the dtype of the network's weights, drawn in float32.

    Raises:
        ArgumentError: The network does not state its ``noise_dim``, or ``n`` is not positive.

    Example:
        >>> draw_noise(MLP(), 3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """
    check_positive("n", n, integer=True)
    width = getattr(network, "noise_dim", None)
    if not isinstance(width, int):
        raise ArgumentError("network", type(network).__name__, "an attribute noise_dim")
    dtypes = (weight.dtype for weight in network.parameters() if weight.is_floating_point())
    dtype = next(dtypes, torch.float32)
    if balanced:
        noise = balanced_normal(n, width, generator)
    else:  # in float32 as well, so that networks of any precision are told the same
        device = generator.device
        noise = torch.randn(n, width, generator=generator, device=device, dtype=torch.float32)
    return noise.to(dtype)


@torch.no_grad()
def sample(
    network: nn.Module,
    n: int,
    generator: torch.Generator,
    *,
    labels: Tensor | None = None,
    omega: Tensor | float | None = None,
    batch_size: int = 65536,
) -> Tensor:
    """Samples of a network, without a graph and in evaluation mode.

    Args:
        network: A network of this module, or one alike.
        n: How many samples.
        generator: The only source of randomness; decides the device too.
        labels: Classes ``(n,)`` for a conditional network, on the generator's device.
        omega: Guidance strength ω ≥ 1 for a network with a ``guidance_dim``, of all samples or
            ``(n,)`` of each; by default what the network takes without being told, 1.
        batch_size: Samples made at once; bounds memory, not the result.

    Returns:
        ``(n, dim)``.

    Raises:
        ArgumentError: ``n`` or ``batch_size`` is not a positive integer, ``labels`` does not hold
            one class that the network knows a sample, or ``omega`` is below 1, not one a sample, or
            told to a network without guidance.

    Example:
        >>> sample(MLP(), 1000, torch.Generator().manual_seed(0)).shape
        torch.Size([1000, 2])
    """
    check_positive("batch_size", batch_size, integer=True)
    noise = draw_noise(network, n, generator)
    if labels is not None:
        check_labels("labels", labels, noise)
        if isinstance(network, (MLP, ResidualMLP)):
            given = f"classes for a {type(network).__name__}"
            raise OptionError("labels", given, "None, or a conditional network")
    if isinstance(network, ConditionalMLP):
        known = range(network.classes)
        if labels is None or not (int(labels.min()) in known and int(labels.max()) in known):
            got = None if labels is None else f"classes {int(labels.min())}…{int(labels.max())}"
            raise OptionError("labels", got, f"classes in 0…{network.classes - 1}")
    if omega is not None:
        omega = _strengths(network, omega, noise)
    columns = [column for column in (noise, labels, omega) if column is not None]
    parts = zip(*(column.split(batch_size) for column in columns), strict=True)
    with judging(network):
        return torch.cat([network(*part) for part in parts])


@contextmanager
def judging(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and what it was before afterwards."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:  # not network.train, which reaches those that stay frozen
            module.training = training


def _strengths(network: nn.Module, omega: Tensor | float, noise: Tensor) -> Tensor:
    """The guidance strength of each sample."""
    if not getattr(network, "guidance_dim", 0):
        needs = "None, or a network with guidance (guidance_dim > 0)"
        raise OptionError("omega", f"{omega} for {type(network).__name__} without guidance", needs)
    if not isinstance(omega, Tensor):
        check_positive("omega", omega)
        omega = noise.new_full((len(noise),), omega)
    if omega.shape != (len(noise),):
        raise ShapeError("omega", f"shape {tuple(omega.shape)}", f"a number or ({len(noise)},)")
    if omega.device != noise.device:
        raise DeviceError("omega", omega.device, f"the generator's device, {noise.device}")
    if omega.is_complex() or not bool(((omega >= 1) & omega.isfinite()).all()):
        raise OptionError("omega", omega, "finite guidance strengths of at least 1")
    return omega.to(noise.dtype)
