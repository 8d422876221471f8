"""Small problems by Newton's method: a few factorisations in place of hundreds of half-steps.

With the rows of the coupling P exact, the dual F(g) = ⟨a, f(g)⟩ + ⟨b, g⟩ has the gradient b − Pᵀ1
and the negative Hessian diag(Pᵀ1) − Pᵀ diag(1/a) P. What half-steps mend slowly, the balance of
mass between modes, are small eigenvalues of that matrix, which a factorisation does not mind. It
costs k³, so this is for a hundred clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keodrift.costs import Cost

LEAST = -150.0  # exponents stop here: what they stand for, and its square, is not denormal (slow)
TRIALS = 60  # steps at most, rejected ones included
RIDGE, LEAST_RIDGE = 1e-8, 1e-10  # Levenberg's, relative to b
GROWTH, DECAY = 30.0, 0.1  # of the ridge, after a rejected and after an accepted step


def newton(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, cost: Cost, tau: float, g: Tensor, *, tol: float
) -> tuple[Tensor, Tensor]:
    """Potentials ``(g, f)`` in units of τ from a start ``g``, to ``tol`` where that is reached.

    A step that would lower the dual is shortened by a larger ridge, with which it becomes a damped
    half-step. So the answer is never worse than the start.

    Args:
        x: Queries, ``(N, d)``.
        y: Atoms, ``(M, d)``.
        a: Weights of x, float64.
        b: Weights of y, float64.
        cost: The ground cost.
        tau: Temperature.
        g: First potential on y, in units of τ.
        tol: L1 error of the column marginal that is enough.
    """
    exponent = -cost.pairs(x.double(), y.double()) / tau
    rows, columns = a > 0, b > 0  # points without weight have a potential, but no say
    inner = exponent[rows][:, columns]
    alive = _ascend(inner, a[rows], b[columns], g[columns], tol)
    f = -_exponentials(exponent[:, columns] + b[columns].log() + alive)[1]
    g = -_exponentials((exponent[rows] + (a[rows].log() + f[rows])[:, None]).T)[1]
    return g, f


def _ascend(exponent: Tensor, a: Tensor, b: Tensor, g: Tensor, tol: float) -> Tensor:
    kernel = exponent + b.log()

    def exact_rows(g: Tensor) -> tuple[Tensor, Tensor]:
        """The coupling whose rows are exact, and its dual value."""
        weights, mass = _exponentials(kernel + g)
        coupling = weights.mul_((a / weights.sum(1))[:, None])
        return coupling, (b * g).sum() - (a * mass).sum()

    coupling, value = exact_rows(g)
    ridge = RIDGE
    for _ in range(TRIALS):
        columns = coupling.sum(0)
        missing = b - columns
        if not float(missing.abs().sum()) > tol:
            break
        curvature = torch.diag(columns + ridge * b)
        curvature.addmm_(coupling.T, coupling / a[:, None], alpha=-1)
        factor, failed = torch.linalg.cholesky_ex(curvature)
        if not bool(failed):
            there = g + torch.cholesky_solve(missing[:, None], factor)[:, 0]
            trial, reached = exact_rows(there)
            if bool(reached >= value):
                # A half-step, which never lowers the dual, settles what is not linear.
                g = there + (b / trial.sum(0)).log()
                coupling, value = exact_rows(g)
                ridge = max(DECAY * ridge, LEAST_RIDGE)
                continue
        ridge *= GROWTH
    return g


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Exponentials of each row less its maximum, and the logarithm of the row's sum."""
    top = logits.amax(1, keepdim=True)
    weights = (logits - top).clamp_(min=LEAST).exp_()
    return weights, top[:, 0] + weights.sum(1).log()
