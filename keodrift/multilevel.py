"""Starts, cold and warm: solve for clusters first and extend to the points.

What makes Sinkhorn slow are a few numbers, the balance of mass between modes. A clustered problem
has the same balance and costs k² a pass; its potential is a function, which one pass brings to
the next finer level. The coarsest level is solved by Newton's method, from where one sweep at each
temperature ends that comes down from the mean cost by factors of 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from keodrift.costs import Cost
from keodrift.newton import newton
from keodrift.reductions import GibbsKernel, gibbs_kernel
from keodrift.reductions.precision import full_precision
from keodrift.sinkhorn import Coupling, half_step, solve

Potential = Callable[[Tensor], Tensor]

CLUSTERS = 4096  # at most, at the finest coarse level
REFINEMENT = 4  # points a cluster, at least, from level to level
SYMMETRIC = 512  # points of a self problem that needs no coarser one
DIRECT = 128  # points that Newton's method takes
SMALLEST = 16  # clusters of the coarsest level, at least
COARSE_TOL = 0.3  # of a coarse problem, relative to that of the fine one
PATIENCE = 10  # half-steps a cluster, at most: the next level takes what is left
COOLING = 4.0  # factor between temperatures
LLOYD = 1  # refinements of the clusters' centres
ALL_DISTANCES = 1 << 22  # up to so many, the nearest sample is searched among all
REACH = 20  # tolerances that points may have moved, in working lengths, for a carried potential
NEAR = 3  # tolerances that a carried potential may be off and be used as it is


def converge(
    kernel: GibbsKernel,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    tol: float,
    max_iterations: int,
    symmetric: bool = False,
    carried: Potential | None = None,
    displacement: float = 0.0,
    backend: str = "auto",
) -> Coupling:
    """The coupling to a tolerance, from a coarse start or from a carried potential.

    A carried potential is worth its pass only where the points have hardly moved: it cannot know
    the mass of the modes in a batch that was drawn anew, which clusters find without a full pass.

    Args:
        kernel: The Gibbs kernel of x and y.
        x: Queries, ``(…, N, d)``.
        y: Atoms, ``(…, M, d)``.
        a: Weights of x.
        b: Weights of y.
        tol: Tolerance of the solve.
        max_iterations: Cap on the half-steps of each level.
        symmetric: The clouds are one.
        carried: A potential on y as a function, in units of τ.
        displacement: How far points are from those the potential was solved for, a length.
        backend: Engine of the coarser problems.
    """
    cost, tau, spent = kernel.frame.cost, kernel.frame.tau, 0
    start: tuple[Tensor, Tensor | None] | None = None
    # Other costs do not say how they change with length.
    near = cost.form != "quadratic" or displacement * cost.scale(tau) <= REACH * tol
    if carried is not None and (near or symmetric or not _coarser(x, y)):
        start = carried(y), None
        if _coarser(x, y) and not symmetric and max_iterations > 2:
            first = solve(kernel, a, b, tol=tol, max_iterations=2, start=start, warn=False)
            if bool(first.converged.all()):
                return first
            near = bool((first.marginal_error <= NEAR * tol).all())
            spent, start = 2, (first.g, first.row) if near else None
    if start is None:
        start = coarse_start(
            x,
            y,
            a,
            b,
            cost,
            tau,
            tol=tol,
            max_iterations=max_iterations,
            symmetric=symmetric,
            backend=backend,
        )
    return solve(
        kernel,
        a,
        b,
        tol=tol,
        max_iterations=max_iterations,
        start=start,
        spent=spent,
        symmetric=symmetric,
    )


def displacement(before: Tensor, after: Tensor) -> float:
    """Root mean square distance between points of equal index; infinite for unequal clouds."""
    if before.shape != after.shape:
        return math.inf
    return math.sqrt(float((after - before).double().square().sum(-1).mean()))


def coarse_start(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    cost: Cost,
    tau: float,
    *,
    tol: float,
    max_iterations: int,
    symmetric: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """First potentials ``(g, f)`` for `solve`, in units of τ, from ever coarser problems.

    Args:
        x: Queries, ``(…, N, d)``.
        y: Atoms, ``(…, M, d)``.
        a: Weights of x.
        b: Weights of y.
        cost: The ground cost.
        tau: Temperature.
        tol: Tolerance of the solve that follows; coarse levels are solved to a third of it.
        max_iterations: Cap on the half-steps of each level.
        symmetric: The clouds are one; its levels need no cooling, their rate is ½ at any τ.
        backend: Engine of the coarser problems.
    """
    if symmetric and (x.shape[-2] <= SYMMETRIC or not _coarser(x, y)):
        return torch.zeros_like(b), None
    if not _coarser(x, y):
        return _cool(x, y, a, b, cost, tau, backend), None
    if _direct(x, y):
        return newton(x, y, a, b, cost, tau, _cool(x, y, a, b, cost, tau, backend), tol=tol)
    clusters = _clusters(x, y)
    coarse_x, coarse_a = cluster(x, a, clusters)
    coarse_y, coarse_b = (coarse_x, coarse_a) if symmetric else cluster(y, b, clusters)
    start = coarse_start(
        coarse_x,
        coarse_y,
        coarse_a,
        coarse_b,
        cost,
        tau,
        tol=COARSE_TOL * tol,
        max_iterations=max_iterations,
        symmetric=symmetric,
        backend=backend,
    )
    coarse = solve(
        gibbs_kernel(coarse_x, coarse_y, cost, tau, backend=backend),
        coarse_a,
        coarse_b,
        tol=COARSE_TOL * tol,
        max_iterations=min(max_iterations, PATIENCE * clusters),
        start=start,
        symmetric=symmetric,
        warn=False,
    )
    g = half_step(gibbs_kernel(y, coarse_x, cost, tau, backend=backend), coarse_a, coarse.f)
    f = half_step(gibbs_kernel(x, coarse_y, cost, tau, backend=backend), coarse_b, coarse.g)
    return g, f


def _direct(x: Tensor, y: Tensor) -> bool:
    return x.dim() == 2 and max(x.shape[-2], y.shape[-2]) <= DIRECT


def _clusters(x: Tensor, y: Tensor) -> int:
    """Clusters of the next coarser level."""
    return int(min(CLUSTERS, x.shape[-2] // REFINEMENT, y.shape[-2] // REFINEMENT))


def _coarser(x: Tensor, y: Tensor) -> bool:
    """Whether something cheaper than half-steps can find the balance between modes."""
    return x.dim() == 2 and (_direct(x, y) or _clusters(x, y) >= SMALLEST)


def cluster(points: Tensor, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Means and masses of at most ``k`` clusters: points with their nearest of k samples.

    The samples follow the weights; the draw is fixed, so equal clouds cluster equally.

    Args:
        points: ``(N, d)``.
        weights: ``(N,)``, float64, sum 1.
        k: Number of samples.

    Returns:
        Centres ``(k', d)`` and their masses ``(k',)`` with k' ≤ k.
    """
    generator = torch.Generator().manual_seed(0)
    alive = int((weights > 0).sum())
    drawn = torch.multinomial(
        weights.cpu(), min(k, alive), replacement=False, generator=generator
    ).to(points.device)
    # Far from the origin distances by matrix products lose their digits.
    origin = points.double().mean(0)
    local = points.double() - origin
    rounded = local.to(points.dtype)
    centres = rounded[drawn]
    for _ in range(LLOYD + 1):
        nearest = _nearest(rounded, centres)
        mass = torch.zeros(len(centres), dtype=weights.dtype, device=points.device)
        mass.index_add_(0, nearest, weights)
        total = local.new_zeros(centres.shape)
        total.index_add_(0, nearest, local * weights[:, None])
        kept = mass > 0
        mass = mass[kept]
        means = total[kept] / mass[:, None]
        centres = means.to(points.dtype)
    return (origin + means).to(points.dtype), mass


def _nearest(points: Tensor, samples: Tensor) -> Tensor:
    """A near sample of each point, ``(N,)``: the nearest, of all or of those in its rough region.

    Where N·k is large, about √k samples cut space into regions, and N·√k distances do.
    """
    if len(points) * len(samples) <= ALL_DISTANCES:
        return _argmin(points, samples)
    anchors = samples[: math.isqrt(len(samples))]
    region = _argmin(samples, anchors)
    # Each anchor in its own region, also where anchors coincide: no region is without a sample.
    region[: len(anchors)] = torch.arange(len(anchors), device=region.device)
    members = [(region == r).nonzero()[:, 0] for r in range(len(anchors))]
    out = torch.empty(len(points), dtype=torch.long, device=points.device)
    own, order = _argmin(points, anchors).sort(stable=True)
    counts = torch.bincount(own, minlength=len(anchors)).tolist()
    for here, near in zip(order.split(counts), members, strict=True):
        out[here] = near[_argmin(points[here], samples[near])]
    return out


def _argmin(points: Tensor, samples: Tensor) -> Tensor:
    parts = points.split(max(1, (1 << 20) // len(samples)))
    with full_precision(points.device.type):
        return torch.cat([torch.cdist(part, samples).argmin(-1) for part in parts])


def _cool(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, cost: Cost, tau: float, backend: str
) -> Tensor:
    """A potential on y after one sweep at each temperature from the mean cost down to τ."""
    sample = cost.pairs(
        x[..., :: max(1, x.shape[-2] // 64), :], y[..., :: max(1, y.shape[-2] // 64), :]
    )
    # Levels from just above τ up to the mean cost; none where that overflows or is below τ.
    ratio = float(sample.abs().mean()) / tau
    levels = math.floor(math.log(ratio, COOLING)) if 1 < ratio < math.inf else 0
    g = torch.zeros_like(b)  # in the unit of the cost
    for level in range(levels, 0, -1):
        temperature = tau * COOLING**level
        kernel = gibbs_kernel(x, y, cost, temperature, backend=backend)
        f = half_step(kernel, b, g / temperature)
        g = temperature * half_step(kernel.T, a, f)
    return g / tau
