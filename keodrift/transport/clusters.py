"""Weighted clouds in few clusters, the same for equal clouds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from keodrift.reductions import nearest
from keodrift.reductions.sizes import sizes

MULTINOMIAL = 1 << 24  # categories, at most, that torch draws from
LLOYD = 1  # refinements of the clusters' centres


class Clusters:
    """Finds clusters once for problems that share a cloud, as cross and self problem do.

    Clouds are known by identity; it holds them, so it is made for a few problems and let go.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def __call__(self, points: Tensor, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `clustered`."""
        key = id(points), id(weights), k
        if key not in self._found:
            self._found[key] = points, weights, *clustered(points, weights, k)
        return self._found[key][2:]


def clustered(points: Tensor, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Means and masses of at most ``k`` clusters of every cloud of a batch.

    Args:
        points: ``(…, N, d)``.
        weights: ``(…, N)``, float64, sum 1.
        k: Number of clusters, at most.

    Returns:
        Centres ``(…, k', d)`` and masses ``(…, k')``; clouds with fewer clusters than others are
        filled up with points of mass 0.
    """
    if points.dim() == 2:
        return cluster(points, weights, k)
    clouds = zip(points.flatten(0, -3), weights.flatten(0, -2), strict=True)
    found = [cluster(*cloud, k) for cloud in clouds]
    width = max(len(mass) for _, mass in found)
    index = torch.arange(width, device=points.device)
    centres = torch.stack([c[index.where(index < len(c), 0)] for c, _ in found])
    masses = torch.stack([torch.nn.functional.pad(m, (0, width - len(m))) for _, m in found])
    batch = points.shape[:-2]
    return centres.reshape(*batch, width, -1), masses.reshape(*batch, width)


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
    alive = weights > 0
    if not bool(alive.all()):  # a padded point may be anywhere
        points, weights = points[alive], weights[alive]
    shares = weights.cpu()
    k = min(k, len(shares))
    drawn = _drawn(shares, k, generator).to(points.device)
    # Far from the origin distances by matrix products lose their digits.
    origin = points.double().mean(0)
    local = points.double() - origin
    rounded = local.to(points.dtype)
    centres = rounded[drawn]
    for _ in range(LLOYD + 1):
        owner = _owners(rounded, centres)
        mass = torch.zeros(len(centres), dtype=weights.dtype, device=points.device)
        mass.index_add_(0, owner, weights)
        total = local.new_zeros(centres.shape)
        total.index_add_(0, owner, local * weights[:, None])
        kept = mass.nonzero()[:, 0]
        mass = mass[kept]
        means = total[kept] / mass[:, None]
        centres = means.to(points.dtype)
    return (origin + means).to(points.dtype), mass


def _drawn(shares: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Different indices, by their weights: k of them, or a few less where there are very many."""
    if len(shares) <= MULTINOMIAL:
        return torch.multinomial(shares, k, generator=generator)
    sums = shares.cumsum(0)
    heights = torch.rand(k, generator=generator, dtype=sums.dtype, device="cpu") * sums[-1]
    return torch.searchsorted(sums, heights, right=True).clamp_(max=len(sums) - 1).unique()


def _owners(points: Tensor, samples: Tensor) -> Tensor:
    """A near sample of each point, ``(N,)``: the nearest, of all or of those in its rough region.

    Where N·k is large, about √k samples cut space into regions, and N·√k distances do.
    """
    if len(points) * len(samples) <= sizes(points.device.type).searched:
        return _nearest(points, samples)
    anchors = samples[: math.isqrt(len(samples))]
    region = _nearest(samples, anchors)
    # Each anchor in its own region, also where anchors coincide: no region is without a sample.
    region[: len(anchors)] = torch.arange(len(anchors), device=region.device)
    members = [(region == r).nonzero()[:, 0] for r in range(len(anchors))]
    out = torch.empty(len(points), dtype=torch.long, device=points.device)
    own, order = _nearest(points, anchors).sort(stable=True)
    counts = torch.bincount(own, minlength=len(anchors)).tolist()
    for here, near in zip(order.split(counts), members, strict=True):
        out[here] = near[_nearest(points[here], samples[near])]
    return out


def _nearest(points: Tensor, samples: Tensor) -> Tensor:
    return nearest(points, samples, exact=False)[1]
