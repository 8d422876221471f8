"""Duals of f-divergences in a reproducing kernel space, solved with streamed kernel products.

The critic h* = argmax E_q h − E_p φ(h) − (λ/2)‖h‖² is (Σ_i a_i k(x_i, ·) − Σ_j α_j k(y_j, ·))/λ
with α_j = b_j φ′(h(y_j)): a problem in as many unknowns t_j = h(y_j) as there are data. With
m_j = Σ_i a_i k(x_i, y_j) Newton's step for t = (m − Kα)/λ solves (I + KB/λ) dt = (m − Kα)/λ − t,
B = diag(bφ″(t)). That operator is self-adjoint and at least 1 in the inner product weighted by B,
where conjugate gradients need one product with K a step, and no quotient by a weight.

What is maximised is λ-strongly concave in ‖h‖, and its slope at the h of α is, to first order, the
sum of (B·residual)_j k(y_j, ·). The norm of that, over λ, bounds |h − h*| wherever k(z, z) ≤ 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from keodrift.reductions import GibbsKernel

LONGEST = 10.0  # step of a value of h at most: exponentials of it stay far from overflow
FORCING = 0.1  # to what share of the error a Newton step is solved, at most
STALLED = 10  # Newton steps without progress after which roundings are taken for the reason

Slope = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Solution:
    """A critic on the data, with its diagnostics.

    Attributes:
        values: h(y_j), float64 ``(…, M)``; 0 at points without weight.
        coefficients: α_j, float64 ``(…, M)``.
        error: Bound on the witness' error at any point, ``(…,)``.
        tol: The error that counts as converged.
        passes: Products with a kernel matrix, that of the model's mean included.
        reason: Why the solve ended, in words.
    """

    values: Tensor
    coefficients: Tensor
    error: Tensor
    tol: float
    passes: int
    reason: str

    @property
    def converged(self) -> Tensor:
        """Whether the error reached the tolerance, ``(…,)`` bool."""
        return self.error <= self.tol


@dataclass(frozen=True, eq=False)
class Dual:
    """The concave problem of a critic.

    Attributes:
        kernel: Of the data with themselves.
        mean: Mean kernel of the model cloud at the data, m, float64 ``(…, M)``.
        b: Weights of the data, float64 ``(…, M)``.
        lam: λ.
        slopes: φ′ and φ″.
        unit: What the witness is in units of h: errors are errors of the witness.
    """

    kernel: GibbsKernel
    mean: Tensor
    b: Tensor
    lam: float
    slopes: tuple[Slope, Slope]
    unit: float

    def solve(self, values: Tensor, tol: float, max_passes: int) -> Solution:
        """The critic, from a guess of its values ``(…, M)``, to ``tol`` or as near as can be."""
        b, lam = self.b, self.lam
        slope, curvature = self.slopes
        alive, t = b > 0, values
        best, last, stale, passes = torch.inf, torch.inf, 0, 1
        while True:
            t = t.where(alive, 0.0)
            coefficients, weights = b * slope(t), b * curvature(t)
            residual = (self.mean - self.product(coefficients)) / lam - t
            image = self.product(weights * residual)
            error = self._error(weights * residual, image)
            passes, worst = passes + 2, float(error.max())
            # A step too far into the exponential comes back by factors of e, from above the best.
            stale = 0 if worst < best or worst < last / 2 else stale + 1
            best, last = min(best, worst), worst
            most = max_passes - passes - 2  # the next evaluation takes two
            if worst <= tol or most < 1 or stale == STALLED:
                break
            step, done = self._step(weights, residual, image, tol, most)
            t, passes = t + step.clamp(-LONGEST, LONGEST), passes + done
        if worst <= tol:
            reason = f"ended after {passes} passes at error {worst:.1e} ≤ {tol:g}"
        else:
            limit = "the cap" if most < 1 else "what the dtype can tell"
            reason = f"stopped after {passes} passes, at {limit}, with error {worst:.1e} > {tol:g}"
        return Solution(t, coefficients, error, tol, passes, reason)

    def product(self, vector: Tensor) -> Tensor:
        """Σ_j k(y_i, y_j) v_j of a signed vector, streamed: a mass times a mean."""
        mean = self.kernel.barycentre(
            torch.zeros_like(vector), values=vector[..., None], guess=self._log_mass
        )
        return self._log_mass.exp() * mean[..., 0].double()

    @cached_property
    def _log_mass(self) -> Tensor:
        return self.kernel.log_mass(torch.zeros_like(self.b))

    def _error(self, coefficients: Tensor, image: Tensor) -> Tensor:
        square = (coefficients * image).sum(-1).clamp_min(0)  # roundings may make it negative
        return self.unit / self.lam * square.sqrt()

    def _step(
        self, weights: Tensor, residual: Tensor, image: Tensor, tol: float, most: int
    ) -> tuple[Tensor, int]:
        """Newton's step by conjugate gradients, and how many products it took."""
        step, direction, along = torch.zeros_like(residual), residual, image
        error = self._error(weights * residual, image)
        enough = (error.clamp(max=FORCING) * error).clamp_min(tol / 2).where(error > tol, error)
        size = (weights * residual.square()).sum(-1, keepdim=True)
        for done in range(most):
            moved = direction + along / self.lam
            bend = (weights * direction * moved).sum(-1, keepdim=True)
            active = (error > enough)[..., None] & (bend > 0)
            if not bool(active.any()):
                return step, done
            length = torch.where(active, size / bend, 0.0)
            step, residual = step + length * direction, residual - length * moved
            image = self.product(weights * residual)
            error = self._error(weights * residual, image).where(active[..., 0], error)
            before, size = size, (weights * residual.square()).sum(-1, keepdim=True)
            turn = torch.where(active, size / before, 0.0)
            direction, along = residual + turn * direction, image + turn * along
        return step, most
