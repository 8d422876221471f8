"""Where samples come from: 2D targets with known formulas, and latents of real images."""

from __future__ import annotations

from keodrift.data.digits import Latents, load_digits_latents
from keodrift.data.images import Images
from keodrift.data.targets import (
    TARGETS,
    Target,
    get_target,
    register_target,
    sample_target,
)

__all__ = [
    "TARGETS",
    "Images",
    "Latents",
    "Target",
    "get_target",
    "load_digits_latents",
    "register_target",
    "sample_target",
]
