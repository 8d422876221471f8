"""Entropic couplings: potentials by a fixed number of half-steps, or to a tolerance.

Here potentials are in units of τ, so that a half-step is f = −log-mass (−λ·log-mass with relaxed
marginals). Weights are float64 with sum 1.

Why a solve may be slow: once the kernel links every mode to itself, what is left are mass
imbalances between modes, and plain half-steps mend those at a rate exp(−gap/τ). Anderson's
extrapolation finds these few directions; a coarse problem (`keodrift.transport.starts`) fixes them
before the first full pass. The dual value guards both: a step that lowers it is taken back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from keodrift.checks import check_positive
from keodrift.errors import ConvergenceWarning, OptionError, users_stacklevel
from keodrift.precision import full_precision
from keodrift.transport.anderson import Anderson
from keodrift.transport.problem import EntropicProblem

FARTHEST = 2.0  # L1 distance of two distributions, at most: the error where nothing can be done
ADVICE = "raise max_half_steps, tol or tau, or use float64"
STALLED = 10  # sweeps without progress after which roundings are taken for the reason


@dataclass(frozen=True, eq=False)
class Coupling:
    """A coupling exp(f_i + g_j − C_ij/τ) a_i b_j through its potentials, with its diagnostics.

    Attributes:
        problem: What it couples.
        g: Potential on y in units of τ, ``(…, M)``.
        tol: The marginal error that counts as converged.
        row: A potential on x whose column half-step is ``g``, in units of τ, if it is known.
        half_steps: Half-steps done on this problem, the row normalisation of the barycentre
            included; 1 where there was no other.
        coarse: Half-steps of the coarser problems that were solved first, coarsest first.
        error: L1 error of the column marginal of the row-normalised coupling, if it was measured.
        reason: Why the solve ended, in words.
    """

    problem: EntropicProblem
    g: Tensor
    tol: float
    row: Tensor | None = None
    half_steps: int = 1
    coarse: tuple[int, ...] = ()
    error: Tensor | None = None
    reason: str = "not solved yet"

    @property
    def bias(self) -> Tensor:
        """β_j = log b_j + g_j/τ, with which a softmax along rows is the coupling's."""
        return self.problem.b.log() + self.g

    @property
    def levels(self) -> tuple[int, ...]:
        """Half-steps of every level, this problem's last."""
        return (*self.coarse, self.half_steps)

    @cached_property
    def f(self) -> Tensor:
        """The potential on x, ``(…, N)``, in units of τ."""
        return self._row_step() if self.row is None else self.row

    @cached_property
    def marginal_error(self) -> Tensor:
        """L1 error of the column marginal of the row-normalised coupling, ``(…,)``.

        With relaxed marginals, where rows are a·exp(−f/r), it is the distance of the columns from
        b·exp(−g/r), which belongs to g, relative to the mass of that: a coupling that leaves nearly
        all mass where it is still has barycentres, which are to be right.

        With what the arithmetic may hide, so that the true one is not above it. Known from a solve;
        after a fixed number of half-steps it takes two passes, on demand.
        """
        if self.error is not None:
            return self.error
        p, f = self.problem, self._row_step()
        error = p.marginal_error(self.g, p.column_step(f)) + p.rounding(f, self.g)
        return _reported(p, error)

    @property
    def converged(self) -> Tensor:
        """Whether the marginal error reached the tolerance, ``(…,)`` bool."""
        return self.marginal_error <= self.tol

    @property
    def value(self) -> Tensor:
        """OT_τ = ⟨a, f⟩ + ⟨b, g⟩, in the unit of the cost, ``(…,)``.

        With relaxed marginals OT_{τ,ρ}, the least ⟨C, π⟩ + τKL(π | a⊗b) + ρKL(π₁ | a) +
        ρKL(π₂ | b). With f the half-step of g it is exact to second order in the error of g.
        """
        return self.problem.value(self._exact_row_step, self.g)

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Shares of their weight that x and y keep, ``(…, N)`` and ``(…, M)``: 1 if balanced."""
        marginals = self.problem.marginals
        return marginals.kept(self._exact_row_step), marginals.kept(self.g)

    @property
    def log_mass(self) -> Tensor | None:
        """Near the log-mass of `bias` at x, ``(…, N)``, if that is known."""
        return None if self.row is None else self.problem.marginals.log_mass(self.row)

    def potential_at(self, points: Tensor) -> Tensor:
        """The potential g as a function of points ``(…, K, d)`` in the space of y, ``(…, K)``."""
        return self.problem.column_step(self.f, at=points)

    def _row_step(self) -> Tensor:
        return self.problem.row_step(self.g, self.row)

    @cached_property
    def _exact_row_step(self) -> Tensor:
        """In float64, for values: its rounding counts τ times."""
        p = self.problem
        return replace(p, x=p.x.double(), y=p.y.double()).row_step(self.g, self.row)


def _reported(problem: EntropicProblem, error: Tensor) -> Tensor:
    """The error of a solve: no two distributions are farther apart than where nothing can be done.

    What the arithmetic may hide knows no such bound.
    """
    if problem.reach is None:
        error = error.clamp(max=FARTHEST)
    return torch.where(problem.infeasible, FARTHEST, error)


Start = Callable[[EntropicProblem, "Sinkhorn"], Coupling]


@dataclass(frozen=True)
class Sinkhorn:
    """How a coupling is found.

    Attributes:
        half_steps: A fixed, odd number from g = 0, the last by the barycentre; None: to ``tol``.
        tol: L1 error of the marginal that is not exact.
        max_half_steps: Cap on the half-steps of every level.

    Raises:
        OptionError: A number is not positive, or ``half_steps`` is even.
    """

    half_steps: int | None = None
    tol: float = 1e-3
    max_half_steps: int = 2000

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        check_positive("tol", self.tol)
        check_positive("max_half_steps", self.max_half_steps, integer=True)
        if self.half_steps is None:
            return
        check_positive("half_steps", self.half_steps, integer=True)
        if self.half_steps % 2 == 0:
            raise OptionError(
                "half_steps",
                self.half_steps,
                f"an odd number (k sweeps are 2k + 1), such as {self.half_steps + 1}",
            )

    def couple(self, problem: EntropicProblem, start: Start) -> Coupling:
        """The coupling; a warning says where the cap was reached before the tolerance."""
        with full_precision(problem.x.device.type):  # once, and not in every half-step
            if self.half_steps is not None:
                return self._iterate(problem, self.half_steps)
            found = self.solve(problem, start)
        if not bool(found.converged.all()):
            hopeless = bool(problem.infeasible.any())
            advice = "lower it, or mask_self=False" if hopeless else ADVICE
            warnings.warn(
                f"Sinkhorn {found.reason}; {advice}.",
                ConvergenceWarning,
                stacklevel=users_stacklevel(),
            )
        return found

    def _iterate(self, problem: EntropicProblem, half_steps: int) -> Coupling:
        f, g = None, torch.zeros_like(problem.b)
        for step in range((half_steps - 1) // 2):
            f = problem.row_step(g, f)
            g = problem.column_step(f, g if step else None)
        reason = f"did the {half_steps} half-steps that were asked for"
        return Coupling(problem, g, self.tol, f, half_steps, reason=reason)

    def solve(self, problem: EntropicProblem, start: Start) -> Coupling:
        """Potentials to a marginal error of ``tol``, or as near as cap and arithmetic allow."""
        begin = start(problem, self)
        if begin.error is not None and bool(begin.converged.all()):
            return begin
        tol = self.tol
        g, f, half_steps = begin.g, begin.row, begin.half_steps - 1
        memory = Anderson(problem.b)
        slack = 64 * problem.kernel.eps
        hopeless = problem.infeasible
        plain: Tensor | None = None
        value: Tensor | None = None
        floor: Tensor | None = None
        image, best = g, torch.full_like(problem.b[..., 0], torch.inf)
        error, stale = best if begin.error is None else begin.error, torch.zeros_like(best)
        while half_steps < self.max_half_steps:
            f, half_steps = problem.row_step(g, f), half_steps + 1
            reached, best_f, best_g = problem.centred(f, g)
            if plain is not None and value is not None:
                # The dual never falls under plain half-steps; where an extrapolation lowers it,
                # the plain step it replaced is taken instead.
                worse = ~(reached >= value - slack * (1 + value.abs()))
                if bool(worse.any()):
                    memory.forget(worse)
                    g = torch.where(worse[..., None], plain, g)
                    f, half_steps = problem.row_step(g, f), half_steps + 1
                    reached, best_f, best_g = problem.centred(f, g)
            value, f, g = reached, best_f, best_g
            image, half_steps = problem.column_step(f, g), half_steps + 1
            seen = problem.marginal_error(g, image)
            # What the host reads stalls a GPU: far from the end it is this alone.
            near = floor is None or bool((hopeless | (seen <= tol) | (seen <= floor)).all())
            floor = problem.rounding(f, g) if near or floor is None else floor
            error = _reported(problem, seen + floor)
            better = seen < 0.9 * best
            best, stale = seen.where(better, best), torch.where(better, 0, stale + 1)
            done = (error <= tol) | ((seen <= floor) & (stale >= STALLED)) | hopeless
            if near and bool(done.all()):
                break
            # Of a self problem both f and its half-step are potentials; their mean is nearer.
            plain = (f + image) / 2 if problem.symmetric else image
            g = torch.where(done[..., None], plain, memory.extrapolate(g, plain))
        # The last half-step is kept: it never raises the error that was measured before it.
        reason = self._reason(half_steps, error, hopeless)
        return Coupling(problem, image, tol, f, half_steps + 1, begin.coarse, error, reason)

    def _reason(self, half_steps: int, error: Tensor, hopeless: Tensor) -> str:
        """Why a solve ended, in words."""
        worst, tol = float(error.max()), self.tol
        if bool(hopeless.any()):
            return "stopped: without the pairs i = i a weight is more than the others can hold"
        if worst <= tol:
            return f"ended after {half_steps} half-steps at marginal error {worst:.1e} ≤ {tol:g}"
        limit = "the cap" if half_steps >= self.max_half_steps else "what the dtype can tell"
        begin = f"stopped after {half_steps} half-steps, at {limit}"
        return f"{begin}, with marginal error {worst:.1e} > {tol:g}"
