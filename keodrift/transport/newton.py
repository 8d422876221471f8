"""Small problems by Newton's method: a few factorisations in place of hundreds of half-steps.

With the rows of the coupling P exact, the dual F(g) = ⟨a, f(g)⟩ + ⟨b, g⟩ has the gradient b − Pᵀ1
and the negative Hessian diag(Pᵀ1) − Pᵀ diag(1/a) P. What half-steps mend slowly, the balance of
mass between modes, are small eigenvalues of that matrix, which a factorisation does not mind. It
costs k³, so this is for a few hundred clusters.

With relaxed marginals a′ = a·exp(−f/r) and b′ = b·exp(−g/r) the gradient is b′ − Pᵀ1 and the
negative Hessian diag(Pᵀ1) + diag(b′)/r − λPᵀ diag(1/a′) P; both are divided by the mass of P here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keodrift.reductions import all_costs
from keodrift.reductions.sizes import sizes
from keodrift.transport.marginals import Marginals
from keodrift.transport.problem import EntropicProblem

LEAST = -150.0  # exponents stop here: what they stand for, and its square, is not denormal (slow)
TRIALS = 60  # steps at most, rejected ones included
RIDGE, LEAST_RIDGE = 1e-2, 1e-10  # Levenberg's, relative to b
GROWTH, DECAY = 30.0, 0.1  # of the ridge, after a rejected and after an accepted step


def newton(problem: EntropicProblem, g: Tensor, *, tol: float) -> tuple[Tensor, Tensor]:
    """Potentials ``(g, f)`` in units of τ from a start ``g``, to ``tol`` where that is reached.

    A step that would lower the dual is shortened by a larger ridge, with which it becomes a damped
    half-step. So the answer is never worse than the start. Problems of a batch step together, as
    many as memory should hold, each with its own ridge.

    Args:
        problem: What to couple; a mask is not seen.
        g: First potential on y, ``(…, M)``.
        tol: L1 error of the column marginal that is enough.
    """
    n, m = problem.a.shape[-1], problem.b.shape[-1]
    together = max(1, sizes(g.device.type).held // (n * m))
    if problem.count > together:
        starts = g.reshape(-1, m).split(together)
        parts = zip(problem.parts(together), starts, strict=True)
        potentials = zip(*(newton(*part, tol=tol) for part in parts), strict=True)
        on_y, on_x = (torch.cat(found) for found in potentials)
        return on_y.reshape(problem.b.shape), on_x.reshape(problem.a.shape)
    a, b, held = problem.a, problem.b, problem.marginals
    tau = torch.as_tensor(problem.tau, dtype=torch.float64, device=b.device)[..., None, None]
    exponent = -all_costs(problem.x.double(), problem.y.double(), problem.cost) / tau
    g = _ascend(exponent + b.log()[..., None, :], a, b, g, held, tol)
    f = held.potential(_exponentials(exponent + (b.log() + g)[..., None, :])[1])
    _, f, _ = held.centred(a, f, b, g)
    return held.potential(_exponentials((exponent + (a.log() + f)[..., None]).mT)[1]), f


def _ascend(kernel: Tensor, a: Tensor, b: Tensor, g: Tensor, held: Marginals, tol: float) -> Tensor:
    alive = b > 0  # points without weight have a potential, but no say
    tiny = torch.finfo(a.dtype).tiny

    def exact_rows(g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The coupling whose rows are as they should be, these, its aim on columns, its dual."""
        weights, mass = _exponentials(kernel + g[..., None, :])
        f = held.potential(mass)
        rows, aim = held.shares(a, f), held.shares(b, g)
        coupling = weights.mul_((rows / weights.sum(-1))[..., None])
        return coupling, rows, aim, held.dual(a, f, b, g)

    coupling, rows, aim, value = exact_rows(g)
    ridge = torch.full_like(value, RIDGE)
    for _ in range(TRIALS):
        columns = coupling.sum(-2)
        missing = (aim - columns) * alive
        active = missing.abs().sum(-1) > tol
        if not bool(active.any()):
            break
        steepness = columns + held.softness * aim + ridge[..., None] * b
        curvature = torch.diag_embed(steepness.where(alive, 1.0))
        curvature -= coupling.mT @ (coupling / (rows.clamp_min(tiny) / held.damping)[..., None])
        factor, failed = torch.linalg.cholesky_ex(curvature)
        there = g + torch.cholesky_solve(missing[..., None], factor)[..., 0]
        trial, _, hoped, reached = exact_rows(there)
        better = active & (failed == 0) & (reached >= value)
        if bool(better.any()):
            # A half-step, which never lowers the dual, settles what is not linear.
            ratio = hoped.clamp_min(tiny) / trial.sum(-2).clamp_min(tiny)
            settled = (there + held.damping * ratio.log()).where(alive, g)
            g = settled.where(better[..., None], g)
            coupling, rows, aim, value = exact_rows(g)
        eased = (DECAY * ridge).clamp_min(LEAST_RIDGE)
        ridge = eased.where(better, torch.where(active, GROWTH * ridge, ridge))
    return g


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Exponentials of each row less its maximum, and the logarithm of the row's sum."""
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top).clamp_(min=LEAST).exp_()
    return weights, top[..., 0] + weights.sum(-1).log()
