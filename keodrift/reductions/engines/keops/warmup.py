"""Compiling ahead, so that the first large call does not wait for the compiler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from keodrift.checks import check_positive
from keodrift.costs import as_cost, check_cost
from keodrift.errors import DeviceError, DtypeError
from keodrift.reductions.engines.keops.kernel import Keops
from keodrift.reductions.frame import make_frame


def warmup(
    d: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    cost: Any = "half_squared",
    mask_self: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Compiles the KeOps formulas of couplings in one dimension, some ten seconds each.

    What is compiled stays in KeOps' cache on disk, for later processes too; another process that
    needs the same formula meanwhile waits for it.

    Args:
        d: Dimension of the points.
        dtype: ``torch.float32`` or ``torch.float64``.
        device: Where the clouds will live; a GPU compiles formulas of its own.
        cost: The ground cost. Half squared and squared share their formulas.
        mask_self: Whether the formulas are those with excluded pairs (one-sided fields).
        progress: Show a progress bar on standard error.

    Returns:
        Seconds taken for each verb; near zero for what was compiled before.

    Raises:
        OptionError: ``d`` is not a positive integer, or the cost is unknown.
        DtypeError: KeOps has no kernels for the dtype.
        DeviceError: KeOps has no kernels for the device, or this torch cannot use it.

    Example:
        >>> import keodrift as kd
        >>> seconds = kd.warmup(2, progress=False)
        >>> "barycentre" in seconds
        True
    """
    check_positive("d", d, integer=True)
    if dtype not in (torch.float32, torch.float64):
        raise DtypeError("dtype", dtype, "torch.float32 or torch.float64")
    try:
        if torch.empty(0, device=device).device.type not in ("cpu", "cuda"):
            raise RuntimeError
    except (RuntimeError, AssertionError, TypeError) as error:
        needs = "cpu, or cuda where this torch can use it"
        raise DeviceError("device", repr(device), needs) from error
    points = torch.arange(4.0, dtype=dtype, device=device)[:, None].expand(1, 4, d) / 4
    one = torch.ones(1, dtype=torch.float64, device=device)
    known = check_cost(as_cost(cost), points)  # as a fit does, which knows one written by hand
    kernel = Keops().kernel(make_frame(points, points, known, one, mask_self), ())
    bias = torch.zeros(4, dtype=torch.float64, device=device)
    verbs: dict[str, Callable[[], Tensor]] = {
        "log-mass": lambda: kernel.log_mass(bias),
        "log-mass about a guess": lambda: kernel.log_mass(bias, bias),
        "barycentre": lambda: kernel.barycentre(bias),
        "barycentre about a guess": lambda: kernel.barycentre(bias, guess=bias),
    }
    taken = {}
    bar = tqdm(verbs.items(), desc=f"compile d = {d}", unit="formula", disable=not progress)
    for name, verb in bar:
        bar.set_postfix_str(name)
        begun = time.perf_counter()
        verb()
        taken[name] = time.perf_counter() - begun
    return taken
