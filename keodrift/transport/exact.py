"""Exact transport, τ = 0, by POT's network simplex."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keodrift.reductions import all_costs
from keodrift.transport.problem import EntropicProblem

PIVOTS = 1_000_000  # at most, far beyond what problems that are solved exactly take
SPECK = 1e-7  # mass that is no exchange: what weights are rounded by


def import_pot() -> ModuleType:
    """POT, which takes a second to import, when it is first needed."""
    # It imports GeomLoss where it is installed, and with it KeOps, which greets on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        import ot
    return ot


@cache
def _network_simplex() -> Callable[..., Any] | None:
    """POT's solver, or None where POT does not load; asked once, since a try takes a second."""
    try:
        return import_pot().emd
    except Exception:  # of another package that POT imports where it is installed
        return None


def exact_potential(problem: EntropicProblem) -> Tensor | None:
    """The potential on y at τ = 0, in units of the problem's τ, float64 ``(…, M)``.

    Small problems, whose marginals are held; a mask is not seen. Problems of a batch are solved one
    after the other, on the CPU. Where modes exchange nothing it is amid all optimal ones. None
    where a cost is not finite, or POT does not load.

    Source: Flamary et al., POT: Python Optimal Transport, JMLR 2021 (`ot.emd`).
    """
    emd = _network_simplex()
    if emd is None:
        return None
    costs = all_costs(problem.x.double(), problem.y.double(), problem.cost)
    if not bool(costs.isfinite().all()):
        return None  # which the simplex does not know
    n, m = costs.shape[-2:]
    shapes = ((problem.a, (n,)), (problem.b, (m,)), (costs, (n, m)))
    clouds = [z.reshape(-1, *shape).cpu().numpy() for z, shape in shapes]
    found = []
    for a, b, cost in zip(*clouds, strict=True):
        plan, log = emd(a, b, cost, numItermax=PIVOTS, log=True, check_marginals=False)
        found.append(torch.from_numpy(_middle(cost - log["u"][:, None], log["v"], plan)))
    b = problem.b
    tau = torch.as_tensor(problem.tau, dtype=b.dtype, device=b.device)
    return torch.stack(found).reshape(b.shape).to(b.device) / tau[..., None]


def _middle(upper: np.ndarray, v: np.ndarray, plan: np.ndarray) -> np.ndarray:
    """The potential on y amid all optimal ones; the simplex ends at their rim.

    Points that exchange mass hold each other's potentials. Between groups that exchange none, such
    as modes of equal mass, there is play, and the limit τ → 0 is inside of it: from the rim
    half-steps get there at a rate exp(−play/τ). How far a group may rise or fall against the
    first is a shortest path, and half of each keeps every bound.

    Args:
        upper: C_ij − u_i, which no v_j exceeds, with the potential u on x that was found.
        v: The potential on y that was found.
        plan: The transport that was found.
    """
    from scipy.sparse import coo_matrix  # which POT has imported by now
    from scipy.sparse.csgraph import connected_components, csgraph_from_dense, dijkstra

    n, m = plan.shape
    i, j = (plan > SPECK).nonzero()
    exchange = coo_matrix((np.ones(len(i)), (i, n + j)), shape=(n + m, n + m))
    groups, group = connected_components(exchange, directed=False)
    if groups == 1:
        return v
    slack = np.full((groups, groups), np.inf)
    of_x, of_y = np.broadcast_arrays(group[:n, None], group[None, n:])
    np.minimum.at(slack, (of_x, of_y), (upper - v).clip(min=0))
    graph = csgraph_from_dense(slack, null_value=np.inf)
    first = group[plan.sum(1).argmax()]
    rise, fall = (dijkstra(way, indices=first) for way in (graph, graph.T))
    # An x without weight rises endlessly and bounds nothing; a y without weight is bounded by all.
    return (upper + ((rise - fall) / 2)[group[:n], None]).min(0)
