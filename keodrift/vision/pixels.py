"""What a grey image is: its sides, and its pixels in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from keodrift.errors import DtypeError, ShapeError

Sides = tuple[int, int]


def check_sides(image_shape: Sides) -> Sides:
    """Height and width of images that are halved twice.

    Raises:
        ShapeError: They are not two multiples of 4.

    Example:
        >>> check_sides((28, 28))
        (28, 28)
    """
    if len(image_shape) != 2 or any(side < 4 or side % 4 for side in image_shape):
        raise ShapeError("image_shape", tuple(image_shape), "two multiples of 4")
    return image_shape[0], image_shape[1]


def check_images(images: Tensor, sides: Sides) -> None:
    """Checks that images ``(…, H, W)`` have the sides that a network was made for.

    Raises:
        ShapeError: They have others.
    """
    if images.shape[-2:] != sides:
        raise ShapeError("images", tuple(images.shape), f"a shape (…, {sides[0]}, {sides[1]})")


def unit(images: Tensor) -> Tensor:
    """Pixels in [0, 1]: bytes divided by 255, and floats as they are.

    Raises:
        DtypeError: They are neither.

    Example:
        >>> unit(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
    """
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    if not images.is_floating_point():
        raise DtypeError("images", images.dtype, "uint8 in 0…255, or floats in [0, 1]")
    return images
