"""Random draws of a recipe: the same at every fit from a seed, fresh ones from a generator.

Those of a network's first weights, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor

from keodrift.errors import OptionError


def check_generator(generator: object) -> None:
    """Checks what a recipe draws from.

    Raises:
        OptionError: It is neither a random generator of torch nor a seed.
    """
    if not isinstance(generator, torch.Generator):
        check_seed("generator", generator, "a torch.Generator, or ")


def check_seed(name: str, seed: object, instead: str = "") -> None:
    """Checks that an option is a seed.

    Raises:
        OptionError: It is none.
    """
    number = -1 if isinstance(seed, bool) or not isinstance(seed, Integral) else int(seed)
    if not 0 <= number < 1 << 63:
        raise OptionError(name, repr(seed), f"{instead}a seed: an integer from 0 to 2⁶³ − 1")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights of networks that are made inside are decided by ``seed``, and the random state stays.

    They are in float32 on the CPU, whatever torch's defaults are.
    """
    before = torch.get_default_dtype()
    # torch.manual_seed would reseed every GPU too; the CPU generator is all that nn.Linear uses.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(int(seed))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def normals(generator: int | torch.Generator, *shape: int, like: Tensor) -> Tensor:
    """Standard normal numbers in float64, on the device of ``like``."""
    if not isinstance(generator, torch.Generator):
        generator = torch.Generator().manual_seed(int(generator))
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return drawn.to(like.device)
