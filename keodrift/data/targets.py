"""2D targets: each one formula, drawn afresh from an explicit random generator.

Every sampler is a function ``(n, generator) -> (n, 2)``; `register_target` adds one under its
name, and with it the centres of its modes where it has any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from keodrift.errors import ArgumentError, OptionError
from keodrift.reductions import nearest

Sampler = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Target:
    """A named 2D distribution.

    Attributes:
        name: What configs call it.
        sampler: Draws ``(n, 2)`` float32 points from an explicit generator.
        modes: Centres of its separate modes ``(K, 2)``, or None where there are none.
        mode_radius: A sample this close to a centre belongs to that mode.

    Example:
        >>> get_target("eight_gaussians").modes.shape
        torch.Size([8, 2])
    """

    name: str
    sampler: Sampler
    modes: Tensor | None = None
    mode_radius: float = 0.0

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws fresh points ``(n, 2)``, as `sample_target` does by name."""
        if n < 1:
            raise ArgumentError("n", n, "at least one point")
        return self.sampler(n, generator).to(torch.float32)

    def nearest_mode(self, points: Tensor) -> Tensor:
        """The mode ``(n,)`` whose centre is nearest to each point ``(n, 2)``.

        Raises:
            OptionError: The target has no separate modes.
        """
        if self.modes is None:
            raise OptionError("target", repr(self.name), "a target with separate modes")
        return nearest(points, self.modes.to(points))[1]


TARGETS: dict[str, Target] = {}


def register_target(
    name: str, *, modes: Tensor | None = None, mode_radius: float = 0.0
) -> Callable[[Sampler], Sampler]:
    """Adds a sampler to the targets that `sample_target` and the configs know by name.

    Args:
        name: The new name.
        modes: Centres of the modes ``(K, 2)``, if coverage is to be measured.
        mode_radius: Distance up to which a sample counts for its nearest centre.

    Raises:
        OptionError: The name is taken.

    Example:
        >>> @register_target("point")
        ... def point(n, generator):
        ...     return torch.zeros(n, 2)
        >>> sample_target("point", 3, torch.Generator()).shape
        torch.Size([3, 2])
        >>> _ = TARGETS.pop("point")
    """

    def add(sampler: Sampler) -> Sampler:
        if name in TARGETS:
            raise OptionError("name", repr(name), f"a name not among {sorted(TARGETS)}")
        TARGETS[name] = Target(name, sampler, modes, mode_radius)
        return sampler

    return add


def get_target(name: str) -> Target:
    """A target by its name.

    Raises:
        OptionError: The target is unknown.

    Example:
        >>> get_target("spiral").modes is None
        True
    """
    if name not in TARGETS:
        raise OptionError("target", repr(name), f"one of {sorted(TARGETS)}")
    return TARGETS[name]


def sample_target(name: str, n: int, generator: torch.Generator) -> Tensor:
    """Draws fresh points of a 2D target.

    Args:
        name: One of `TARGETS`.
        n: How many points.
        generator: The only source of randomness; the same state gives the same points.

    Returns:
        ``(n, 2)``, float32, on the generator's device.

    Raises:
        OptionError: The target is unknown.
        ArgumentError: ``n`` is not positive.

    Example:
        >>> points = sample_target("spiral", 500, torch.Generator().manual_seed(0))
        >>> points.shape
        torch.Size([500, 2])
    """
    return get_target(name).sample(n, generator)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float32)


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, device=generator.device, dtype=torch.float32)


def _integers(high: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, (n,), generator=generator, device=generator.device)


def _whole(high: int, n: int, generator: torch.Generator) -> Tensor:
    return _integers(high, n, generator).to(torch.float32)


def _vector(*values: float, like: torch.Generator) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=torch.float32)


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)


_EIGHT = _polar(2.0, 2 * math.pi * torch.arange(8, dtype=torch.float32) / 8)
_PAIR = torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=torch.float32)


@register_target("eight_gaussians", modes=_EIGHT, mode_radius=0.4)
def eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    """2·(cos 2πk/8, sin 2πk/8) + 0.08·N(0, I), k uniform on 0…7."""
    centres = _EIGHT.to(generator.device)[_integers(8, n, generator)]
    return centres + 0.08 * _normal(n, generator)


@register_target("two_modes", modes=_PAIR, mode_radius=0.5)
def two_modes(n: int, generator: torch.Generator) -> Tensor:
    """(±2, 0) + 0.1·N(0, I), either sign half of the time."""
    centres = _PAIR.to(generator.device)[_integers(2, n, generator)]
    return centres + 0.1 * _normal(n, generator)


@register_target("checkerboard")
def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on the even cells (i + j even) of a 4×4 board on [−2, 2]², + 0.05·N(0, I)."""
    cell = _integers(8, n, generator)
    row = cell // 2
    column = 2 * (cell % 2) + row % 2
    corner = torch.stack((column, row), dim=-1) - 2.0
    inside = torch.stack((_uniform(n, generator), _uniform(n, generator)), dim=-1)
    return corner + inside + 0.05 * _normal(n, generator)


@register_target("two_moons")
def two_moons(n: int, generator: torch.Generator) -> Tensor:
    """(cos t, sin t) or (1 − cos t, ½ − sin t), t uniform on [0, π], + 0.08·N(0, I)."""
    angle = math.pi * _uniform(n, generator)
    upper = _polar(1.0, angle)
    lower = _vector(1.0, 0.5, like=generator) - upper
    pick = (_integers(2, n, generator) == 0).unsqueeze(-1)
    return torch.where(pick, upper, lower) + 0.08 * _normal(n, generator)


@register_target("spiral")
def spiral(n: int, generator: torch.Generator) -> Tensor:
    """2.5·r·(cos 4πr, sin 4πr), r = √u, u uniform (two turns, even along the arm), + 0.05·N."""
    radius = _uniform(n, generator).sqrt()
    return 2.5 * _polar(radius, 4 * math.pi * radius) + 0.05 * _normal(n, generator)


@register_target("swiss_roll")
def swiss_roll(n: int, generator: torch.Generator) -> Tensor:
    """(t cos t, t sin t)/5, t uniform on [3π/2, 9π/2], + 0.05·N(0, I)."""
    angle = 1.5 * math.pi * (1 + 2 * _uniform(n, generator))
    return _polar(angle / 5, angle) + 0.05 * _normal(n, generator)


@register_target("pinwheel")
def pinwheel(n: int, generator: torch.Generator) -> Tensor:
    """Five arms: (1 + 0.3 z₁, 0.1 z₂) turned by 2πk/5 + ¼·exp(1 + 0.3 z₁), times 2."""
    spread = _vector(0.3, 0.1, like=generator)
    arm = _vector(1.0, 0.0, like=generator) + spread * _normal(n, generator)
    angle = 2 * math.pi * _whole(5, n, generator) / 5 + 0.25 * arm[:, 0].exp()
    cos, sin = angle.cos(), angle.sin()
    turned = (cos * arm[:, 0] - sin * arm[:, 1], sin * arm[:, 0] + cos * arm[:, 1])
    return 2 * torch.stack(turned, dim=-1)


@register_target("rings")
def rings(n: int, generator: torch.Generator) -> Tensor:
    """Four circles of radius ½, 1, 1½, 2, each a quarter of the mass, + 0.05·N(0, I)."""
    radius = 0.5 * (1 + _whole(4, n, generator))
    return _polar(radius, 2 * math.pi * _uniform(n, generator)) + 0.05 * _normal(n, generator)


@register_target("two_circles")
def two_circles(n: int, generator: torch.Generator) -> Tensor:
    """Two circles of radius 1 and 2, half of the mass each, + 0.05·N(0, I)."""
    radius = 1.0 + _whole(2, n, generator)
    return _polar(radius, 2 * math.pi * _uniform(n, generator)) + 0.05 * _normal(n, generator)
