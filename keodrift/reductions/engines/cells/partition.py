"""Clouds cut into cells, and which cells can matter to which, from the potentials.

For a query x and the atoms of a cell with centre Y, the cell's part of the log-mass is, up to the
−½‖x‖² that all cells share,

    x·Y − ½‖Y‖² + log Σ_j exp(φ_j + (x − Y)·v_j),      φ_j = bias_j − ½‖v_j‖².

Tilted by a vector t that flattens φ + t·v (bias and cost nearly cancel where the coupling lives),
the logarithm lies between its tangent at x − Y = t (Jensen) and the tangent plus ½ r²‖x − Y − t‖²
(Hoeffding; r is the cell's radius). Lower bounds are linear in x, so one matrix product compares
all cells, and what is left out of a sum is known before any pair of points is met.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from keodrift.reductions.sizes import sizes

# Cells along the side of a parent cell, which is compared first where there are many.
FAMILY = 4


@dataclass(frozen=True)
class Partition:
    """A cloud of N points sorted by the C cells of a grid.

    Attributes:
        order: Index of each sorted point in the cloud, ``(N,)``.
        start: First sorted point of a cell, ``(C,)``.
        count: Points of a cell, ``(C,)``.
        owner: Cell of each sorted point, ``(N,)``.
        centre: Middle of the cell's bounding box, float64 ``(C, d)``.
        radius: Largest distance of its points to the centre, float64 ``(C,)``.
        local: Sorted points about their centres, ``(N, d)`` in the dtype of the cloud.
        parents: The same points in cells of `FAMILY` times the side, or None.
        first: First cell of each parent, if there are parents; cells of one lie together.
    """

    order: Tensor
    start: Tensor
    count: Tensor
    owner: Tensor
    centre: Tensor
    radius: Tensor
    local: Tensor
    parents: Partition | None = None
    first: Tensor | None = None

    def __len__(self) -> int:
        return len(self.count)


def cut(points: Tensor, side: float) -> Partition:
    """Sorts ``(N, d)`` points by the cubes of a grid."""
    place = ((points.double() - points.double().amin(0)) / side).floor().long()
    fine, coarse = _label(place), _label(place.div(FAMILY, rounding_mode="floor"))
    order = fine.argsort(stable=True)
    order = order[coarse[order].argsort(stable=True)]
    points, fine, coarse = points[order], fine[order], coarse[order]
    parents = _group(points, order, coarse)
    cells = _group(points, order, fine)
    first = torch.searchsorted(cells.start, parents.start)
    return Partition(**{**vars(cells), "parents": parents, "first": first})


def _label(place: Tensor) -> Tensor:
    """One integer a cube. Ranks along each axis keep it below N^d, whatever the extent."""
    label = torch.zeros_like(place[:, 0])
    for axis in place.unbind(-1):
        values, rank = axis.unique(return_inverse=True)
        label = label * len(values) + rank
    return label


def _group(points: Tensor, order: Tensor, label: Tensor) -> Partition:
    _, owner, count = label.unique_consecutive(return_inverse=True, return_counts=True)
    shape = (len(count), points.shape[-1])
    index = owner[:, None].expand_as(points)
    low = points.new_full(shape, torch.inf).scatter_reduce_(0, index, points, "amin")
    high = points.new_full(shape, -torch.inf).scatter_reduce_(0, index, points, "amax")
    centre = (low + high) / 2
    local = points - centre[owner]
    reach = local.double().norm(dim=-1)
    radius = reach.new_zeros(len(count)).scatter_reduce_(0, owner, reach, "amax")
    return Partition(order, count.cumsum(0) - count, count, owner, centre.double(), radius, local)


@dataclass(frozen=True)
class Tilted:
    """What the bounds need of a biased cell, all float64 over ``C`` cells.

    Attributes:
        tilt: t, the vector that flattens φ + t·v.
        top: The maximum of φ + t·v.
        log_mass: log Σ_j exp(φ_j + t·v_j).
        mean: The mean of v under these weights.
        level: φ_j + t·v_j − top of each sorted point, ``(N,)``, in the dtype of the cloud.
    """

    tilt: Tensor
    top: Tensor
    log_mass: Tensor
    mean: Tensor
    level: Tensor

    @staticmethod
    def of(cells: Partition, bias: Tensor) -> Tilted:
        """Statistics of cells whose sorted points carry ``bias (N,)``, float64."""
        v, owner = cells.local.double(), cells.owner

        def total(values: Tensor) -> Tensor:
            zeros = values.new_zeros(len(cells), *values.shape[1:])
            return zeros.index_add_(0, owner, values)

        phi = bias - v.square().sum(-1) / 2
        alive = torch.isfinite(phi)
        some = total(alive.double()).clamp_min(1)
        # Least squares of φ against v within each cell; any t is valid, a good one is sharp.
        about = v - (total(v * alive[:, None]) / some[:, None])[owner]
        about = about * alive[:, None]
        flat = phi.masked_fill(~alive, 0)
        slope = torch.stack([total(about * c[:, None]) for c in about.unbind(-1)], -1)
        trace = slope.diagonal(dim1=-2, dim2=-1).sum(-1)
        eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        ridge = (1e-2 * trace + 1e-12)[:, None, None] * eye
        centred = flat - (total(flat) / some)[owner]
        tilt = -torch.linalg.solve(slope + ridge, total(about * centred[:, None]))
        level = phi + (tilt[owner] * v).sum(-1)
        top = level.new_full((len(cells),), -torch.inf).scatter_reduce_(0, owner, level, "amax")
        top = top.clamp_min(torch.finfo(torch.float64).min / 4)
        level = level - top[owner]
        weight = level.exp()
        mass = total(weight)
        mean = total(weight[:, None] * v) / mass.clamp_min(torch.finfo(mass.dtype).tiny)[:, None]
        level = level.clamp_min(torch.finfo(cells.local.dtype).min / 4).to(cells.local.dtype)
        return Tilted(tilt, top, top + mass.log(), mean, level)


def relevant(
    x: Partition, y: Partition, bias: Tensor, tilted: Tilted, omitted: float
) -> tuple[Tensor, Tensor]:
    """Pairs of cells outside which no query finds more than a share of its mass.

    Args:
        x: Cells of the queries.
        y: Cells of the atoms.
        bias: Of the sorted atoms, float64 ``(M,)``.
        tilted: Statistics of ``y`` under that bias.
        omitted: The share that may be left out, of every query's mass.

    Returns:
        Indices into the cells of x and of y, sorted by x.
    """
    flat = sizes(bias.device.type).cell_pairs
    if len(x) * len(y) <= flat or x.parents is None or y.parents is None:
        every = torch.arange(len(y), device=bias.device)
        rows = max(1, flat // 4 // len(y))
        groups: Iterator[tuple[Tensor, Tensor]] = (
            (part, every) for part in torch.arange(len(x), device=bias.device).split(rows)
        )
        share = omitted
    else:
        # Pairs of parents first; within the kept ones, their cells.
        groups = _families(x, y, bias, omitted / 2)
        share = omitted / 2
    found = [_compare(x, y, tilted, i, j, share) for i, j in groups]
    rows_, cols_ = (torch.cat(part) for part in zip(*found, strict=True))
    return rows_, cols_


def _families(
    x: Partition, y: Partition, bias: Tensor, omitted: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cells of each parent of x, with the cells of y whose parents it needs."""
    (above_x, children_x), (above_y, children_y) = _children(x), _children(y)
    above = Tilted.of(above_y, bias)
    rows, cols = relevant(above_x, above_y, bias, above, omitted)
    counts = torch.bincount(rows, minlength=len(above_x)).tolist()
    for cells, near in zip(children_x, cols.split(counts), strict=True):
        yield cells, torch.cat([children_y[k] for k in near.tolist()])


def _children(cells: Partition) -> tuple[Partition, tuple[Tensor, ...]]:
    """The parents of cells, themselves if there are none, and the cells of each."""
    every = torch.arange(len(cells), device=cells.start.device)
    if cells.parents is None or cells.first is None:
        return cells, every.split(1)
    ends = [*cells.first.tolist()[1:], len(cells)]
    sizes = [end - begin for begin, end in zip(cells.first.tolist(), ends, strict=True)]
    return cells.parents, every.split(sizes)


def _compare(
    x: Partition, y: Partition, tilted: Tilted, i: Tensor, j: Tensor, omitted: float
) -> tuple[Tensor, Tensor]:
    """Which of the atoms' cells j each of the queries' cells i needs."""
    centre, radius = x.centre[i], x.radius[i, None]
    mean, anchor = tilted.mean[j], y.centre[j] + tilted.tilt[j]
    tangent = y.centre[j] + mean  # slope of the lower bound
    level = tilted.log_mass[j] - y.centre[j].square().sum(-1) / 2 - (anchor * mean).sum(-1)
    low = centre @ tangent.mT + level
    best, star = low.max(-1, keepdim=True)
    # How far the upper bound may be above the lower one, anywhere in the query's cell …
    off = _distances(centre, anchor) + radius
    wide = y.radius[j] + mean.norm(dim=-1)
    slack = torch.minimum(off.square() * (y.radius[j] ** 2 / 2), off * wide)
    # … and how much better the cell may do beside the best one away from the query cell's centre.
    drift = _distances(tangent[star[:, 0]], tangent) * radius
    kept = low - best + slack + drift >= math.log(omitted / len(j))
    rows, cols = kept.nonzero(as_tuple=True)
    return i[rows], j[cols]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
