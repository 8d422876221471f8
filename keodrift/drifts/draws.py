"""Random draws of a recipe: the same at every fit from a seed, fresh ones from a generator."""

from __future__ import annotations

import torch
from torch import Tensor

from keodrift.errors import OptionError


def check_generator(generator: object) -> None:
    """Checks what a recipe draws from.

    Raises:
        OptionError: It is neither a random generator of torch nor a seed.
    """
    if isinstance(generator, torch.Generator):
        return
    seed = generator if isinstance(generator, int) and not isinstance(generator, bool) else -1
    if not 0 <= seed < 1 << 63:
        needs = "a torch.Generator, or a seed: an integer from 0 to 2⁶³ − 1"
        raise OptionError("generator", repr(generator), needs)


def normals(generator: int | torch.Generator, *shape: int, like: Tensor) -> Tensor:
    """Standard normal numbers in float64, on the device of ``like``."""
    if not isinstance(generator, torch.Generator):
        generator = torch.Generator().manual_seed(generator)
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return drawn.to(like.device)
