"""Where a solve begins: at zero, cooled, at the potential of clusters, or at one carried over.

What makes Sinkhorn slow are a few numbers, the balance of mass between modes. A clustered problem
has the same balance and costs k² a pass; its potential is a function, which one pass brings to
the next finer level. The coarsest level is solved by Newton's method. It begins at the potential of
exact transport, from which the entropic one is a few τ away; with relaxed marginals, or where τ is
large, it begins where one sweep at each temperature ends that comes down from the mean cost by
factors of 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from keodrift.transport.clusters import Clusters
from keodrift.transport.exact import exact_potential
from keodrift.transport.newton import newton
from keodrift.transport.problem import EntropicProblem
from keodrift.transport.sinkhorn import Coupling, Sinkhorn, Start

CLUSTERS = 4096  # at most, at the finest coarse level
REFINEMENT = 4  # points a cluster, at least, from level to level
FEW = 128  # clusters to which a level goes at once where twice as many would be left
SYMMETRIC = 512  # points of a self problem that needs no coarser one
DIRECT = 256  # points that Newton's method takes
SMALLEST = 16  # clusters of the coarsest level, at least
COARSE_TOL = 0.3  # of the finest coarse problem, relative to that of the fine one
COARSER_TOL = 2.0  # of each coarser one, relative to that of the one before: it is farther off
PATIENCE = 10  # half-steps a cluster, at most: the next level takes what is left
STEEP = 64.0  # mean cost in units of τ, above which exact transport is worth loading POT
COOLING = 4.0  # factor between temperatures
REACH = 20  # tolerances that points may have moved, in lengths of τ, for a carried potential
NEAR = 3  # tolerances that a carried potential may be off and be used as it is


def zero(problem: EntropicProblem, solver: Sinkhorn) -> Coupling:
    """G = 0."""
    return Coupling(problem, torch.zeros_like(problem.b), solver.tol)


def cooled(problem: EntropicProblem, solver: Sinkhorn) -> Coupling:
    """One sweep at each temperature from the mean cost down to τ."""
    tau, ratio = problem.tau, problem.steepness
    # Levels from just above τ up to the mean cost; none where that overflows or is below τ.
    levels = math.floor(math.log(ratio, COOLING)) if 1 < ratio < math.inf else 0
    g = torch.zeros_like(problem.b)
    for level in range(levels, 0, -1):
        warmer = problem.at(tau * COOLING**level)
        # The potential stays what it is in the unit of the cost.
        g = warmer.column_step(warmer.row_step(g / COOLING**level)) * COOLING**level
    return Coupling(problem, g, solver.tol)


def coarse(
    problem: EntropicProblem,
    solver: Sinkhorn,
    clusters: Clusters | None = None,
    share: float = COARSE_TOL,
) -> Coupling:
    """The potential of ever coarser problems, brought to the points by one pass.

    Args:
        problem: The problem to begin.
        solver: How it will be solved.
        clusters: Those found for problems that share a cloud with this one.
        share: Tolerance of the coarse problem, relative to the solver's.
    """
    if problem.symmetric and (problem.x.shape[-2] <= SYMMETRIC or not _reducible(problem)):
        return zero(problem, solver)  # whose rate is ½ at any τ
    if not _reducible(problem):
        return cooled(problem, solver)
    if _direct(problem):
        steep = problem.reach is None and problem.steepness > STEEP
        exact = exact_potential(problem) if steep else None
        begin = cooled(problem, solver).g if exact is None else exact
        g, f = newton(problem, begin, tol=solver.tol)
        return Coupling(problem, g, solver.tol, f)
    clusters = clusters or Clusters()
    count = _clusters(problem)
    coarser = problem.coarsened(count, clusters)
    patience = min(solver.max_half_steps, PATIENCE * count)
    rougher = replace(solver, tol=share * solver.tol, max_half_steps=patience)
    found = rougher.solve(coarser, partial(coarse, clusters=clusters, share=COARSER_TOL))
    g = found.potential_at(problem.y)
    f = g if problem.symmetric else coarser.row_step(found.g, at=problem.x)
    return Coupling(problem, g, solver.tol, f, coarse=found.levels)


@dataclass(frozen=True, eq=False)
class Again:
    """An earlier coupling of the same problem, to be solved further.

    Attributes:
        before: The coupling.
    """

    before: Coupling

    def __call__(self, problem: EntropicProblem, solver: Sinkhorn) -> Coupling:
        """The coupling, judged by the solver's tolerance; its half-steps count."""
        return replace(self.before, tol=solver.tol)


@dataclass(frozen=True, eq=False)
class Carried:
    """The potential of an earlier coupling as a function.

    It is worth its pass only where the points have hardly moved: it cannot know the mass of the
    modes in a batch that was drawn anew, which clusters find without a full pass.

    Attributes:
        before: The earlier coupling.
        moved: How far points are from those it was solved for, a length.
        otherwise: Where a solve begins that this potential does not suit.
    """

    before: Coupling
    moved: float
    otherwise: Start = coarse

    def __call__(self, problem: EntropicProblem, solver: Sinkhorn) -> Coupling:
        """The carried potential where it is near, else that of clusters."""
        replaceable = _reducible(problem) and not problem.symmetric
        if replaceable and self._far(problem, solver.tol):
            return self.otherwise(problem, solver)
        before, now = (
            torch.as_tensor(p.tau, dtype=torch.float64, device=problem.y.device)[..., None]
            for p in (self.before.problem, problem)
        )
        g = self.before.potential_at(problem.y) * (before / now)  # each in units of its τ
        begin = Coupling(problem, g, solver.tol)
        if not replaceable or solver.max_half_steps <= 2:
            return begin
        first = replace(solver, max_half_steps=2).solve(problem, lambda *_: begin)
        if bool((first.marginal_error <= NEAR * solver.tol).all()):
            return first
        return replace(self.otherwise(problem, solver), half_steps=first.half_steps)

    def _far(self, problem: EntropicProblem, tol: float) -> bool:
        length = problem.cost.length(torch.as_tensor(problem.tau, device=problem.y.device))
        return length is not None and bool((self.moved / length > REACH * tol).any())


def displacement(before: Tensor, after: Tensor) -> float:
    """Root mean square distance between points of equal index; infinite for unequal clouds."""
    if before.shape != after.shape:
        return math.inf
    return math.sqrt(float((after - before).double().square().sum(-1).mean()))


def _direct(problem: EntropicProblem) -> bool:
    return max(problem.x.shape[-2], problem.y.shape[-2]) <= DIRECT


def _clusters(problem: EntropicProblem) -> int:
    """Clusters of the next coarser level."""
    points = min(problem.x.shape[-2], problem.y.shape[-2])
    clusters = min(CLUSTERS, points // REFINEMENT)
    return min(clusters, FEW) if clusters <= 2 * FEW else clusters


def _reducible(problem: EntropicProblem) -> bool:
    """Whether something cheaper than half-steps can find the balance between modes."""
    return _direct(problem) or _clusters(problem) >= SMALLEST
