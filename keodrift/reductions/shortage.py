"""Out of memory, said in the sizes of a problem and with what would fit."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from keodrift.errors import OutOfMemoryError, is_short

P = ParamSpec("P")
R = TypeVar("R")

BLOCKS = 3  # of pairs that are held at a time where pairs are stored


def within_memory(verb: Callable[P, R]) -> Callable[P, R]:
    """A method of a kernel that says what would fit where it does not."""

    @functools.wraps(verb)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return verb(*args, **kwargs)
        except OutOfMemoryError:
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_short(error):
                raise
            raise _in_sizes(args[0]) from error

    return guarded


def _in_sizes(kernel: Any) -> OutOfMemoryError:
    x, y, engine = kernel.frame.x, kernel.frame.y, kernel.engine
    (problems, n, d), m, number = x.shape, y.shape[1], y.element_size()
    several = f"{problems:,} problems of " if problems > 1 else ""
    got = f"{engine.name!r}, out of memory on {x.device} with {several}{n:,} × {m:,} pairs"
    got += f" in d = {d}, {y.dtype}"
    if not engine.stores:
        needs = "fewer points or problems at a time, or float32; its memory is linear in them"
        return OutOfMemoryError("backend", got, needs)
    block = problems * n * m * number / 2**30
    needs = f"'tiled' or 'keops', whose memory is linear: a block of pairs takes {block:,.1f} GiB"
    free = _free(x.device)
    if free is not None:
        most = math.isqrt(int(free / (BLOCKS * number * problems)))
        needs += f", and {free / 2**30:,.1f} GiB are free, enough for some {most:,} points a cloud"
    return OutOfMemoryError("backend", got, needs)


def _free(device: torch.device) -> float | None:
    """Bytes of a device that are free, if they are known."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return None
