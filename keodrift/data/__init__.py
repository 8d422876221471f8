"""Where samples come from: 2D targets with known formulas, images, and latents of any model."""

from __future__ import annotations

from keodrift.data.alae import ALAE_CLASSES, load_alae, write_synthetic_alae
from keodrift.data.digits import load_digit_images, load_digits_latents
from keodrift.data.images import Images, load_mnist, to_unit
from keodrift.data.latents import Latents
from keodrift.data.pca import pca_latents
from keodrift.data.targets import (
    TARGETS,
    Target,
    get_target,
    register_target,
    sample_target,
)

__all__ = [
    "ALAE_CLASSES",
    "TARGETS",
    "Images",
    "Latents",
    "Target",
    "get_target",
    "load_alae",
    "load_digit_images",
    "load_digits_latents",
    "load_mnist",
    "pca_latents",
    "register_target",
    "sample_target",
    "to_unit",
    "write_synthetic_alae",
]
