"""Full precision inside the kernels, whatever the process has chosen for its networks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Turns off autocast and matrix products in TF32 or bfloat16, and on again.

    A logit is a small difference of large products: ten bits of mantissa leave it wrong by whole
    units.

    Args:
        device: Type of the device that holds the points.
    """
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    products: Any = getattr(backend, "matmul", None)
    read: Callable[[], Any]
    write: Callable[[Any], None]
    if hasattr(products, "fp32_precision"):
        read = functools.partial(getattr, products, "fp32_precision")
        write = functools.partial(setattr, products, "fp32_precision")
        exact = "ieee"
    else:  # before torch 2.9
        read, write = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        exact = "highest"
    with torch.autocast(device, enabled=False):
        kept = read()
        write(exact)
        try:
            yield
        finally:
            write(kept)


def in_full_precision(verb: Callable[P, R]) -> Callable[P, R]:
    """A method of a kernel, in full precision."""

    @functools.wraps(verb)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        kernel: Any = args[0]
        with full_precision(kernel.frame.x.device.type):
            return verb(*args, **kwargs)

    return guarded
