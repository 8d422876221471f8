"""Which engine answers: by name, by object, or the one that is fastest for a problem, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keodrift.costs import Cost, as_cost
from keodrift.errors import OptionError
from keodrift.reductions.engines.cells.kernel import CELLS_DIMENSION, Cells
from keodrift.reductions.engines.dense import Dense
from keodrift.reductions.engines.keops import compiler
from keodrift.reductions.engines.keops.kernel import Keops
from keodrift.reductions.engines.tiled import Tiled
from keodrift.reductions.frame import make_frame
from keodrift.reductions.kernel import Engine, GibbsKernel
from keodrift.reductions.sizes import sizes

ENGINES: dict[str, Engine] = {e.name: e for e in (Dense(), Tiled(), Keops(), Cells())}


@dataclass(frozen=True)
class Choice:
    """An engine and the reason for it.

    Attributes:
        engine: One of `ENGINES`.
        reason: One sentence.
    """

    engine: str
    reason: str

    def __str__(self) -> str:
        return f"{self.engine}: {self.reason}"


def check_backend(backend: str | Engine) -> None:
    """Checks that a backend is ``"auto"``, the name of an engine, or an engine.

    Raises:
        OptionError: It is none of them.
    """
    if not (isinstance(backend, Engine) or backend == "auto" or backend in ENGINES):
        needs = f"'auto', one of {sorted(ENGINES)}, or an engine"
        raise OptionError("backend", repr(backend), needs)


def choose_backend(
    n: int,
    m: int,
    d: int,
    *,
    batch: int = 1,
    device: str = "cpu",
    cost: Cost | str | Any = "half_squared",
) -> Choice:
    """Picks the engine that ``backend="auto"`` would use, and says why.

    Args:
        n: Number of queries.
        m: Number of atoms.
        d: Dimension of the points.
        batch: Number of independent problems.
        device: Type of the device that holds the points, ``"cpu"`` or ``"cuda"``.
        cost: The ground cost.

    Returns:
        A `Choice`; printing it gives engine and reason.

    Raises:
        OptionError: The cost is unknown, or a size is negative.

    Example:
        >>> print(choose_backend(1000, 1000, 2))
        dense: 1000000 pairs fit in one block
    """
    for name, size in (("n", n), ("m", m), ("d", d), ("batch", batch)):
        if size < 0:
            raise OptionError(name, size, "a number of points, dimensions or problems")
    cost, limits = as_cost(cost), sizes(device)
    pairs = batch * n * m
    # An expression on tensors holds the differences of all pairs for a moment.
    held = n * m * (1 if cost.by_distance else d)
    if held <= limits.stored and batch * held <= limits.batch:
        return Choice("dense", f"{pairs} pairs fit in one block")
    compressed = cost.curvature is not None and d <= CELLS_DIMENSION
    if compressed and n * m >= limits.cells:
        return Choice("cells", f"{pairs} pairs in d = {d} are compressed between cells")
    limit = limits.keops_dimension
    if not limit:
        return Choice("tiled", f"KeOps knows no {device}")
    if d > limit and cost.by_distance:
        return Choice("tiled", f"d = {d} > {limit}, where matrix products win on {device}")
    if compiler.failure(device) is not None:
        return Choice("tiled", f"KeOps cannot compile here ({compiler.failure(device)})")
    if compiler.missing():
        return Choice("tiled", "no C++ compiler was found for KeOps")
    return Choice("keops", f"{pairs} pairs in d = {d} are streamed by compiled reductions")


def gibbs_kernel(
    x: Tensor,
    y: Tensor,
    cost: Cost | str | Any = "half_squared",
    tau: float | Tensor = 1.0,
    *,
    mask_self: bool = False,
    backend: str | Engine = "auto",
    alive: tuple[Tensor | None, Tensor | None] = (None, None),
) -> GibbsKernel:
    """The kernel exp(−C(x_i, y_j)/τ), ready for the verbs ``log_mass`` and ``barycentre``.

    Args:
        x: Queries, ``(…, N, d)``; the verbs are differentiable in them.
        y: Atoms, ``(…, M, d)``, same batch axes, dtype and device.
        cost: The ground cost C.
        tau: Temperature, in the unit of the cost; one for all, or one a problem of the batch.
        mask_self: Excludes the pairs i = j.
        backend: ``"auto"``, a key of `ENGINES`, or an engine.
        alive: Which queries ``(…, N)`` and atoms ``(…, M)`` count, all by default. The others, such
            as padding far away, are met all the same, and cost these no digits.

    Raises:
        OptionError: The backend or the cost is unknown.

    Example:
        >>> import torch
        >>> kernel = gibbs_kernel(torch.zeros(1, 2), torch.zeros(3, 2))
        >>> kernel.log_mass(torch.zeros(3)).exp()
        tensor([3.0000], dtype=torch.float64)
    """
    cost = as_cost(cost)
    check_backend(backend)
    batch, (n, d), m = tuple(x.shape[:-2]), x.shape[-2:], y.shape[-2]
    flat_x, flat_y = x.reshape(-1, n, d), y.reshape(-1, m, d)
    taus = torch.as_tensor(tau, dtype=torch.float64, device=y.device).expand(batch).reshape(-1)
    if backend == "auto":
        device = x.device.type
        backend = choose_backend(n, m, d, batch=len(flat_x), device=device, cost=cost).engine
    engine = backend if isinstance(backend, Engine) else ENGINES[backend]
    flat = [one if one is None else one.reshape(-1, one.shape[-1]) for one in alive]
    frame = make_frame(flat_x, flat_y, cost, taus, mask_self, (flat[0], flat[1]))
    return engine.kernel(frame, batch)
