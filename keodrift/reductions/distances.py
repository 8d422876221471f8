"""Statistics of distances and costs between clouds, streamed: means, the median, the nearest."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from keodrift.costs import Cost
from keodrift.precision import full_precision
from keodrift.reductions.blocks import exclude_self, pair_costs, weighted_sums
from keodrift.reductions.sizes import sizes


def mean_cost(x: Tensor, y: Tensor, cost: Cost, points: int | None = None) -> Tensor:
    """Mean of C over all pairs, float64 ``(…,)``.

    Args:
        x: ``(…, N, d)``.
        y: ``(…, M, d)``.
        cost: The ground cost.
        points: At most so many points of each cloud enter, evenly picked; all by default.
    """
    if points is not None:
        x, y = (z[..., :: -(-z.shape[-2] // points), :] for z in (x, y))
    total = torch.zeros(x.shape[:-2], dtype=torch.float64, device=x.device)
    for _, block in _row_blocks(x, y, cost):
        total += block.double().sum((-1, -2))
    return total / (x.shape[-2] * y.shape[-2])


def expected_cost(
    x: Tensor, a: Tensor, y: Tensor, b: Tensor, cost: Cost, points: int = 2048
) -> Tensor:
    """Mean of C under weights of x and y, float64 ``(…,)``.

    Args:
        x: ``(…, N, d)``.
        a: Weights of x, float64 ``(…, N)``.
        y: ``(…, M, d)``.
        b: Weights of y, float64 ``(…, M)``.
        cost: The ground cost.
        points: At most so many points with weight of each cloud enter, evenly picked; those without
            count alike where none has any.
    """
    sides = []
    for z, weights in ((x, a), (y, b)):
        few, mass = _picked(z, weights, points)
        total = mass.sum(-1, keepdim=True)
        even = torch.full_like(mass, 1 / mass.shape[-1])
        sides.append((few, torch.where(total > 0, mass / total, even)))
    (x, a), (y, b) = sides
    mean = torch.zeros(x.shape[:-2], dtype=torch.float64, device=x.device)
    for rows, block in _row_blocks(x, y, cost):
        mean += (a[..., rows] * weighted_sums(block.double(), b[..., None])[..., 0]).sum(-1)
    return mean


def _picked(z: Tensor, weights: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most so many points and their weights, evenly among those that have any.

    So a problem that is padded to the width of a batch keeps the points that it has alone.
    """
    k = z.shape[-2]
    if k <= most:
        return z, weights
    alive = weights > 0
    count = alive.sum(-1, keepdim=True)
    step = (count + most - 1) // most
    places = torch.arange(most, device=z.device) * step.clamp_min(1)
    order = torch.argsort(~alive, dim=-1, stable=True)
    index = order.gather(-1, places.clamp(max=k - 1))
    few = z.gather(-2, index[..., None].expand(*index.shape, z.shape[-1]))
    return few, weights.gather(-1, index) * (places < count)


def _row_blocks(x: Tensor, y: Tensor, cost: Cost) -> Iterator[tuple[slice, Tensor]]:
    """Some rows after others, and their costs ``(…, rows, M)``."""
    x, y = cost.lifted(x), cost.lifted(y)
    held = sizes(y.device.type).held
    step = max(1, held // (y.numel() if not cost.by_distance else y[..., 0].numel()))
    for begin in range(0, x.shape[-2], step):
        rows = slice(begin, begin + step)
        some = x[..., rows, :]
        block = pair_costs(cost, some.reshape(-1, *some.shape[-2:]), y.reshape(-1, *y.shape[-2:]))
        yield rows, block.reshape(*some.shape[:-1], y.shape[-2])


def all_costs(x: Tensor, y: Tensor, cost: Cost) -> Tensor:
    """C of every pair of two small clouds, ``(…, N, M)``."""
    return torch.cat([block for _, block in _row_blocks(x, y, cost)], -2)


def median_distance(points: Tensor) -> float:
    """Median distance between different points of a small cloud ``(K, d)``."""
    return float(torch.pdist(points.double()).median())


def nearest(
    points: Tensor, samples: Tensor, *, exact: bool = True, mask_self: bool = False
) -> tuple[Tensor, Tensor]:
    """Distance to the nearest of ``samples (K, d)`` and its index, ``(N,)`` both.

    Args:
        points: ``(N, d)``.
        samples: ``(K, d)``.
        exact: Distances from differences; else from products, faster and off by roundings.
        mask_self: Leaves out the pairs i = j, where ``samples`` are the points themselves; the
            distance of a point without others is infinite.
    """
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist_if_necessary"
    found = []
    with full_precision(points.device.type):
        rows = max(1, sizes(points.device.type).held // 4 // len(samples))
        for i, part in enumerate(points.split(rows)):
            block = torch.cdist(part, samples, compute_mode=mode)
            found.append((exclude_self(block, i * rows, 0) if mask_self else block).min(-1))
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)
