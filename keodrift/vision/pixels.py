"""The sides of grey images that networks take."""

from __future__ import annotations

from torch import Tensor

from keodrift.errors import ShapeError

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
