"""Entropic couplings: potentials by a fixed number of half-steps, or to a tolerance.

Inside this module potentials are in units of τ, so that a half-step is f = −log-mass. Weights are
float64 with sum 1.

Why a solve may be slow: once the kernel links every mode to itself, what is left are mass
imbalances between modes, and plain half-steps mend those at a rate exp(−gap/τ). Anderson's
extrapolation finds these few directions; a coarse problem (`keodrift.multilevel`) fixes them
before the first full pass. The dual value guards both: a step that lowers it is taken back.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from keodrift.anderson import Anderson
from keodrift.errors import ConvergenceWarning, users_stacklevel
from keodrift.reductions import GibbsKernel


@dataclass(frozen=True)
class Coupling:
    """A coupling exp(f_i + g_j − C_ij/τ) a_i b_j through its potentials, with its diagnostics.

    Attributes:
        kernel: The Gibbs kernel of x and y.
        a: Weights of x, float64 ``(…, N)``.
        b: Weights of y, float64 ``(…, M)``.
        g: Potential on y in units of τ, ``(…, M)``.
        tol: The marginal error that counts as converged.
        row: A potential on x whose column half-step is ``g``, in units of τ, if it is known.
        iterations: Half-steps done, the row normalisation of the barycentre included.
        error: L1 error of the column marginal of the row-normalised coupling, if it was measured.
    """

    kernel: GibbsKernel
    a: Tensor
    b: Tensor
    g: Tensor
    tol: float
    row: Tensor | None = None
    iterations: int = 1
    error: Tensor | None = None

    @property
    def bias(self) -> Tensor:
        """β_j = log b_j + g_j/τ, with which a softmax along rows is the coupling's."""
        return self.b.log() + self.g

    @cached_property
    def f(self) -> Tensor:
        """The potential on x, ``(…, N)``, in units of τ."""
        return half_step(self.kernel, self.b, self.g) if self.row is None else self.row

    @cached_property
    def marginal_error(self) -> Tensor:
        """L1 error of the column marginal of the row-normalised coupling, ``(…,)``.

        Known from a solve; after a fixed number of half-steps it takes two passes, on demand.
        """
        if self.error is not None:
            return self.error
        image = half_step(self.kernel.T, self.a, half_step(self.kernel, self.b, self.g))
        return marginal_error(self.b, self.g, image)

    @property
    def converged(self) -> Tensor:
        """Whether the marginal error reached the tolerance, ``(…,)`` bool."""
        return self.marginal_error <= self.tol

    def atoms_potential(self, kernel: GibbsKernel) -> Tensor:
        """The potential g as a function: at the queries of ``kernel``, whose atoms are x."""
        return half_step(kernel, self.a, self.f)


def half_step(
    kernel: GibbsKernel, weights: Tensor, potential: Tensor, guess: Tensor | None = None
) -> Tensor:
    """f_i = −log Σ_j b_j exp(g_j − C_ij/τ): makes the rows of the coupling exact.

    A query without atoms (its own, masked) has no row to make exact; its potential is 0.
    """
    mass = kernel.log_mass(weights.log() + potential, None if guess is None else -guess)
    return -mass.masked_fill(torch.isneginf(mass), 0)


def marginal_error(weights: Tensor, potential: Tensor, image: Tensor) -> Tensor:
    """Σ_j b_j |exp(g_j − G(g)_j) − 1|: how far the marginal at ``g`` is from ``weights``."""
    return (weights * torch.expm1((potential - image).clamp(max=700)).abs()).sum(-1)


def iterate(kernel: GibbsKernel, a: Tensor, b: Tensor, half_steps: int, *, tol: float) -> Coupling:
    """The coupling after an odd number of half-steps from g = 0; the barycentre does the last."""
    f = None
    g = torch.zeros_like(b)
    for step in range((half_steps - 1) // 2):
        f = half_step(kernel, b, g, f)
        g = half_step(kernel.T, a, f, g if step else None)
    return Coupling(kernel, a, b, g, tol, row=f, iterations=half_steps)


def solve(
    kernel: GibbsKernel,
    a: Tensor,
    b: Tensor,
    *,
    tol: float,
    max_iterations: int,
    start: tuple[Tensor, Tensor | None] | None = None,
    spent: int = 0,
    symmetric: bool = False,
    warn: bool = True,
) -> Coupling:
    """Potentials to a marginal error of ``tol``.

    Args:
        kernel: The Gibbs kernel of x and y.
        a: Weights of x.
        b: Weights of y.
        tol: L1 error of the marginal that is not exact.
        max_iterations: Cap on half-steps; a warning says so when it is reached.
        start: First potential on y, and a guess of the one on x if there is one; 0 by default.
        spent: Half-steps that finding the start took; they count.
        symmetric: The clouds are one: a single potential, f ← ½(f + S f).
        warn: Whether reaching the cap is worth a warning.
    """
    g, f = (torch.zeros_like(b), None) if start is None else start
    cold = start is None  # then the first potentials are no guess for the next ones
    memory = Anderson(b)
    slack = 64 * torch.finfo(kernel.frame.y.dtype).eps
    plain = dual = None
    image, error, half_steps = g, torch.full_like(b[..., 0], torch.inf), spent
    while half_steps < max_iterations:
        f, half_steps = half_step(kernel, b, g, f), half_steps + 1
        value = _dual(a, f, b, g)
        if plain is not None and dual is not None:
            # The dual never falls under plain half-steps; where an extrapolation lowers it, the
            # plain step it replaced is taken instead.
            worse = ~(value >= dual - slack * (1 + dual.abs()))
            if bool(worse.any()):
                memory.forget(worse)
                g = torch.where(worse[..., None], plain, g)
                f, half_steps = half_step(kernel, b, g, f), half_steps + 1
                value = _dual(a, f, b, g)
        dual = value
        if symmetric:
            image = (g + f) / 2
            error = marginal_error(a, g, f)
        else:
            guess = None if cold and plain is None else g
            image, half_steps = half_step(kernel.T, a, f, guess), half_steps + 1
            error = marginal_error(b, g, image)
        if bool((error <= tol).all()):
            break
        plain = image
        g = torch.where((error <= tol)[..., None], image, memory.extrapolate(g, image))
    # The last half-step is kept, which lowers the error that was measured before it: a column
    # half-step never raises it, and the symmetric step halves the distance to the solution.
    row = image if symmetric else f
    coupling = Coupling(kernel, a, b, image, tol, row, half_steps + 1, error)
    if warn and not bool(coupling.converged.all()):
        warnings.warn(
            f"Sinkhorn stopped after {half_steps} half-steps with marginal error "
            f"{float(error.max()):.1e} > tol = {tol:g}; raise max_iterations, tol or tau.",
            ConvergenceWarning,
            stacklevel=users_stacklevel(),
        )
    return coupling


def _dual(a: Tensor, f: Tensor, b: Tensor, g: Tensor) -> Tensor:
    return (a * f).sum(-1) + (b * g).sum(-1)


def transport_value(coupling: Coupling, tau: float) -> Tensor:
    """OT_τ = ⟨a, f⟩ + ⟨b, g⟩, in the unit of the cost, ``(…,)``.

    With f the half-step of g the coupling has mass 1, and the value is exact to second order in
    the error of g.
    """
    f = half_step(coupling.kernel, coupling.b, coupling.g, coupling.row)
    return tau * _dual(coupling.a, f, coupling.b, coupling.g)
