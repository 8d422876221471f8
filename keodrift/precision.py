"""Full precision for pairs, whatever the process has chosen for its networks."""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_inside: Counter[str] = Counter()  # how many are, by the setting they need
_kept: dict[str, Any] = {}  # what the settings were before the first
_mine = threading.local()  # devices for which this thread is inside: entering again is free


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Turns off autocast and matrix products in TF32 or bfloat16, and on again.

    A logit is a small difference of large products: ten bits of mantissa leave it wrong by whole
    units. The setting of products is the process's, so the first thread that enters saves it and
    the last that leaves restores it.

    Args:
        device: Type of the device that holds the points.
    """
    if is_full(device):
        yield
        return
    mine: set[str] = _mine.__dict__.setdefault("devices", set())
    again = device in mine
    setting, read, write, exact = _products(device)
    with torch.autocast(device, enabled=False):
        with _lock:
            if not _inside[setting]:
                _kept[setting] = read()
                write(exact)
            _inside[setting] += 1
        mine.add(device)
        try:
            yield
        finally:
            if not again:
                mine.discard(device)
            with _lock:
                _inside[setting] -= 1
                if not _inside[setting]:
                    write(_kept.pop(setting))


def is_full(device: str) -> bool:
    """Whether this thread has nothing left to turn off for a device."""
    return device in _mine.__dict__.get("devices", ()) and not torch.is_autocast_enabled(device)


def _products(device: str) -> tuple[str, Callable[[], Any], Callable[[Any], None], Any]:
    """The setting of matrix products: its name, how it is read and written, and its exact value."""
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    products: Any = getattr(backend, "matmul", None)
    if hasattr(products, "fp32_precision"):
        read = functools.partial(getattr, products, "fp32_precision")
        return device, read, functools.partial(setattr, products, "fp32_precision"), "ieee"
    # Before torch 2.9 there is one for all devices.
    return "all", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"


def _forget_other_threads() -> None:
    """A forked child has none of the threads that were inside."""
    global _lock
    _lock = threading.Lock()
    for setting in list(_kept):
        _products(setting)[2](_kept.pop(setting))
    _inside.clear()
    _mine.__dict__.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
