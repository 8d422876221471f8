"""Exact transport, τ = 0, by POT's network simplex."""

from __future__ import annotations

import contextlib
import io
from types import ModuleType

import torch
from torch import Tensor

from keodrift.reductions import all_costs
from keodrift.transport.problem import EntropicProblem

PIVOTS = 1_000_000  # at most, far beyond what problems that are solved exactly take


def import_pot() -> ModuleType:
    """POT, which takes a second to import, when it is first needed."""
    # It imports GeomLoss where it is installed, and with it KeOps, which greets on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        import ot
    return ot


def exact_potential(problem: EntropicProblem) -> Tensor | None:
    """The potential on y at τ = 0, in units of the problem's τ, float64 ``(…, M)``.

    Small problems, whose marginals are held; a mask is not seen. Problems of a batch are solved one
    after the other, on the CPU. None where a cost is not finite, or POT does
    not load.

    Source: Flamary et al., POT: Python Optimal Transport, JMLR 2021 (`ot.emd`).
    """
    try:
        emd = import_pot().emd
    except Exception:  # of another package that POT imports where it is installed
        return None
    costs = all_costs(problem.x.double(), problem.y.double(), problem.cost)
    if not bool(costs.isfinite().all()):
        return None  # which the simplex does not know
    n, m = costs.shape[-2:]
    shapes = ((problem.a, (n,)), (problem.b, (m,)), (costs, (n, m)))
    clouds = [z.reshape(-1, *shape).cpu().numpy() for z, shape in shapes]
    found = [
        torch.from_numpy(emd(*one, numItermax=PIVOTS, log=True, check_marginals=False)[1]["v"])
        for one in zip(*clouds, strict=True)
    ]
    b = problem.b
    tau = torch.as_tensor(problem.tau, dtype=b.dtype, device=b.device)
    return torch.stack(found).reshape(b.shape).to(b.device) / tau[..., None]
