"""A decoder of images, and features of them, that the user names by import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from keodrift.errors import DtypeError, OptionError, ShapeError

Map = Callable[[Tensor], Tensor]
BATCH = 64  # latents decoded at once; bounds memory, not the result


def imported(argument: str, path: str | Map) -> Map:
    """A function by its import path.

    Args:
        argument: What the path was given as, for errors.
        path: ``"package.module:function"`` or ``"package.module.function"``; a function is
            returned as it is.

    Raises:
        OptionError: There is no such module or function.

    Example:
        >>> imported("features", "torch.nn.functional:relu") is torch.nn.functional.relu
        True
    """
    if callable(path):
        return path
    module, _, name = str(path).replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        needs = f"package.module:function that can be imported ({error})"
        raise OptionError(argument, repr(path), needs) from error
    if not callable(found):
        raise OptionError(argument, repr(path), f"a function, not {type(found).__name__}")
    return found


@torch.no_grad()
def image_features(latents: Tensor, decode: Map, features: Map) -> Tensor:
    """Features of decoded latents, in batches and without a graph.

    Args:
        latents: ``(n, d)``.
        decode: Latents ``(n, d)`` to images ``(n, …)``.
        features: Images to features ``(n, f)``.

    Raises:
        DtypeError: A function gives something else than a floating-point tensor.
        ShapeError: It gives a tensor of another shape.

    Example:
        >>> image_features(torch.zeros(100, 4), lambda z: z.unflatten(1, (2, 2)), torch.flatten)
        Traceback (most recent call last):
        ...
        keodrift.errors.ShapeError: features: got a function from (64, 2, 2) to (256,), needs ...
    """
    parts = []
    for batch in latents.split(BATCH):
        images = _checked("decoder", batch, decode(batch), "…")
        parts.append(_checked("features", images, features(images), "f"))
    return torch.cat(parts)


def _checked(name: str, given: Tensor, made: Any, rest: str) -> Tensor:
    if not isinstance(made, Tensor) or not made.is_floating_point():
        got = f"a function to {getattr(made, 'dtype', type(made).__name__)}"
        raise DtypeError(name, got, "one to a floating-point tensor")
    if made.dim() < 2 or len(made) != len(given) or (rest == "f" and made.dim() > 2):
        got = f"a function from {tuple(given.shape)} to {tuple(made.shape)}"
        raise ShapeError(name, got, f"one to ({len(given)}, {rest})")
    return made
