"""Cells engine: near-linear passes in low dimension, with a bound on what they leave out.

A coupling is sparse between cells of about one bandwidth: `partition` finds the pairs of cells
that can matter. Each of them is compressed: with the polynomial of `expansion`, the atoms of a
cell enter through a few moments as seen from the centre of the queries' cell,

    Q_α = Σ_j exp(bias_j − ½‖v_j‖² + D·v_j) v_j^α,

and a query sums exp(−½‖D‖² − D·u − ½‖u‖²) Σ_α c_α u^α Q_α over the cells it needs: (N + M)·k·P
operations, k cells and P moments each, in place of N·M exponentials. Of a sum without the pair
i = i that pair's share is taken off again; where it is most of the sum, pairs of points are met.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from keodrift.reductions.blocks import exponentials_, lowest
from keodrift.reductions.engines.cells.expansion import (
    exponential_polynomial,
    monomials,
    multi_indices,
    multinomials,
    slopes,
)
from keodrift.reductions.engines.cells.partition import Partition, Tilted, cut, relevant
from keodrift.reductions.engines.keops.kernel import Keops
from keodrift.reductions.frame import Frame
from keodrift.reductions.kernel import Engine, GibbsKernel
from keodrift.reductions.sizes import sizes

# Dimensions in which cells of one bandwidth hold many points.
CELLS_DIMENSION = 3
# Side of a cell in working lengths: smaller ones are more, larger ones need more moments.
SIDE = {1: 2.0, 2: 1.75, 3: 1.75}
# Relative error of a sum that the polynomials may cause, and as much again by cells left out.
ACCURACY = {torch.float32: 1e-5, torch.float64: 1e-9}
# Pairs of points that cost as much as one moment of one pair of cells.
MOMENT_PAIRS = 8
# How far potentials may spread from those that pairs of cells were found for.
MARGIN = 1.0
# Share of an excluded pair up to which it is subtracted: what is left errs 1/(1 − share) as much.
OWN_SHARE = 0.5
# One query in so many may have more, at most: else visiting all pairs is cheaper.
ALONE = 8


@dataclass(frozen=True)
class Cells(Engine):
    """Compresses pairs between cells.

    Attributes:
        otherwise: Engine of what it cannot compress: other costs, more dimensions, graphs, points
            that are nearly alone where they are excluded themselves, and clouds so small or so
            wide that pairs of points are cheaper.
    """

    name = "cells"
    compiles = True
    otherwise: Engine = field(default_factory=Keops)

    def kernel(self, frame: Frame, batch: tuple[int, ...]) -> GibbsKernel:
        """The kernel; clouds are cut when they are first met."""
        return CellKernel(self, frame, batch)


class CellKernel(GibbsKernel):
    """Squared costs in d ≤ 3 by cells; what it cannot compress goes to another engine."""

    engine: Cells

    @cached_property
    def T(self) -> GibbsKernel:
        """The transposed kernel, on the same cells."""
        turned = CellKernel(self.engine, self.frame.transposed(), self.batch)
        if self._compresses:
            turned.__dict__["_problems"] = [_Clouds(p.y, p.x) for p in self._problems]
        return turned

    @cached_property
    def _exact(self) -> GibbsKernel:
        return self.engine.otherwise.kernel(self.frame, self.batch)

    @cached_property
    def _problems(self) -> list[_Clouds]:
        side = SIDE[self.frame.x.shape[-1]]
        clouds = zip(self.frame.x.detach(), self.frame.y, strict=True)
        return [_Clouds(cut(x, side), cut(y, side)) for x, y in clouds]

    @property
    def _compresses(self) -> bool:
        frame = self.frame
        low = frame.x.shape[-1] <= CELLS_DIMENSION
        return frame.quadratic and low and not frame.x.requires_grad

    def _log_sum(self, bias: Tensor, guess: Tensor | None) -> Tensor:
        found = self._sums(bias, averages=False)  # between cells a guess saves nothing
        return self._exact._log_sum(bias, guess) if found is None else found[0]

    def _average(self, bias: Tensor, values: Tensor | None, guess: Tensor | None) -> Tensor:
        found = self._sums(bias, averages=True) if values is None else None
        return self._exact._average(bias, values, guess) if found is None else found[1]

    def _coupling_sum(self, *arguments: Any) -> Tensor:
        return self._exact._coupling_sum(*arguments)

    def _omitted(self, squares: Tensor) -> Tensor | float:
        more = 1 / (1 - OWN_SHARE) if self.frame.mask_self else 1
        return more * ACCURACY[self.frame.y.dtype] / 2

    def _sums(self, bias: Tensor, averages: bool) -> tuple[Tensor, Tensor] | None:
        """Log-sums and averages as `_Clouds.sums`; None where pairs of points are cheaper."""
        if not self._compresses:
            return None
        found = []
        for b, (problem, each) in enumerate(zip(self._problems, bias, strict=True)):
            sums = problem.sums(each, averages)
            if sums is not None and self.frame.mask_self:
                sums = self._without_own(b, each, *sums)
            if sums is None:
                return None
            found.append(sums)
        log_sums, means = zip(*found, strict=True)
        return torch.stack(log_sums), torch.stack(means)

    def _without_own(
        self, b: int, bias: Tensor, log_sums: Tensor, means: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The sums of a problem less the pairs i = i; None where those are too much of them."""
        x, y = self.frame.x[b], self.frame.y[b]
        both, width = min(len(x), len(y)), means.shape[-1]
        own = bias[:both] - (x[:both].double() - y[:both].double()).square().sum(-1) / 2
        share = torch.zeros_like(log_sums)
        share[:both] = (own - log_sums[:both]).exp().nan_to_num(0)  # −∞ less −∞: no atom is alive
        alone = (share > OWN_SHARE).nonzero()[:, 0]
        if ALONE * len(alone) > len(x):
            return None
        share.clamp_(max=OWN_SHARE)
        log_sums = log_sums + torch.log1p(-share)
        rest = share[:both, None].to(means.dtype)
        means[:both] = (means[:both] - rest * y[:both, :width]) / (1 - rest)
        if len(alone):
            # They and their own atoms come first, so that a query's own has its index.
            others = torch.ones(len(y), dtype=torch.bool, device=y.device)
            others[alone] = False
            order = torch.cat([alone, others.nonzero()[:, 0]])
            exact = self.engine.otherwise.kernel(self.frame.part(b, alone, order), ())
            log_sums[alone] = exact._log_sum(bias[None, order], None)[0]
            if width:
                means[alone] = exact._average(bias[None, order], None, None)[0]
        return log_sums, means


@dataclass
class _Pairs:
    """Pairs of cells sorted by the queries' cell, and the bias they were found for."""

    i: Tensor
    j: Tensor
    count: Tensor  # of each queries' cell
    bias: Tensor


@dataclass
class _Clouds:
    """One pair of clouds in cells; its pairs of cells serve as long as the bias hardly moves."""

    x: Partition
    y: Partition
    pairs: _Pairs | None = None

    def sums(self, bias: Tensor, averages: bool) -> tuple[Tensor, Tensor] | None:
        """Log-sums ``(N,)``, float64, and averages of the atoms, ``(N, d)``, or ``(N, 0)``."""
        x, y = self.x, self.y
        log_sums = bias.new_full((len(x.order),), -torch.inf)
        means = torch.zeros_like(x.local if averages else x.local[:, :0])
        if not bool(torch.isfinite(bias).any()):
            return log_sums, means
        accuracy = ACCURACY[y.local.dtype]
        bias = bias[y.order]
        tilted = Tilted.of(y, bias)
        pairs = self._find(bias, tilted, accuracy)
        reach = math.ceil(50 * float(x.radius.max() * y.radius.max())) / 50
        polynomial = exponential_polynomial(reach, accuracy, averages)
        size = len(multi_indices(x.local.shape[-1], len(polynomial) - 1))
        if len(pairs.i) * size * MOMENT_PAIRS > len(x.order) * len(y.order):
            return None
        for cells, part in self._blocks(pairs, sizes(bias.device.type).moments // size):
            i, j = pairs.i[part], pairs.j[part]
            level, moments = _moments(x, y, tilted, i, j, len(polynomial) - 1)
            points, *found = _evaluate(x, y, cells, i, j, level, moments, polynomial, averages)
            log_sums[points], means[points] = found
        return log_sums, means

    def _find(self, bias: Tensor, tilted: Tilted, accuracy: float) -> _Pairs:
        if self.pairs is not None:
            moved = bias - self.pairs.bias
            moved = moved[~torch.isnan(moved)]  # −inf both times
            if len(moved) == 0 or float(moved.max() - moved.min()) <= MARGIN:
                return self.pairs
        # A bound on shares made with one bias holds for another up to exp(spread of the change).
        i, j = relevant(self.x, self.y, bias, tilted, accuracy * math.exp(-MARGIN))
        self.pairs = _Pairs(i, j, torch.bincount(i, minlength=len(self.x)), bias)
        return self.pairs

    def _blocks(self, pairs: _Pairs, most: int) -> Iterator[tuple[slice, slice]]:
        """Slices of query cells and of their pairs, with at most so many pairs (or one cell)."""
        ends = [0, *pairs.count.cumsum(0).tolist()]
        first = 0
        for cell in range(1, len(ends)):
            if cell + 1 == len(ends) or ends[cell + 1] - ends[first] > most:
                yield slice(first, cell), slice(ends[first], ends[cell])
                first = cell


def _moments(
    x: Partition, y: Partition, tilted: Tilted, i: Tensor, j: Tensor, degree: int
) -> tuple[Tensor, Tensor]:
    """Moments of the atoms' cells j as seen from the queries' cells i.

    Returns:
        ``level``, float64 ``(pairs,)``, and ``moments (pairs + 1, P)``, whose last row is 0, with
        Q_α = exp(level + ½‖D‖²) · moments_α.
    """
    dtype = y.local.dtype
    apart = x.centre[i] - y.centre[j]
    # Ragged cells are padded with one more atom that has no weight, and pairs with one more pair.
    local, weight = _with_row(y.local, 0.0), _with_row(tilted.level, lowest(y.local))
    lean = _with_row((apart - tilted.tilt[j]).to(dtype), 0.0)  # what the tilt leaves of D
    by_atoms = _with_row(j.argsort(stable=True), len(j))
    count = torch.bincount(j, minlength=len(y))
    first = count.cumsum(0) - count
    moments = local.new_zeros(len(j) + 1, len(multi_indices(local.shape[-1], degree)))
    top = local.new_zeros(len(j) + 1)
    for cells in _batches(y.count, count, moments.shape[-1]):
        atoms = _padded(y.start[cells], y.count[cells], len(local) - 1)
        pair = by_atoms[_padded(first[cells], count[cells], len(j))]
        v = local[atoms]
        tile = torch.baddbmm(weight[atoms][:, None, :], lean[pair], v.mT)
        peak = tile.amax(-1, keepdim=True)
        sums = exponentials_(tile.sub_(peak)) @ monomials(v, degree).mT
        moments.index_copy_(0, pair.flatten(), sums.flatten(0, 1))
        top.index_copy_(0, pair.flatten(), peak.flatten())
    moments[-1] = 0
    return tilted.top[j] - apart.square().sum(-1) / 2 + top[:-1], moments


def _evaluate(
    x: Partition,
    y: Partition,
    cells: slice,
    i: Tensor,
    j: Tensor,
    level: Tensor,
    moments: Tensor,
    polynomial: tuple[float, ...],
    averages: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sums and averages at the points of a slice of query cells, from all their pairs.

    Returns:
        Which points these are in their cloud, and what was found there.
    """
    d, degree = x.local.shape[-1], len(polynomial) - 1
    begin = int(x.start[cells.start])
    start, count = x.start[cells] - begin, x.count[cells]
    n = int(count.sum())
    owner = x.owner[begin : begin + n] - cells.start
    local = _with_row(x.local[begin : begin + n], 0.0)
    i = i - cells.start
    have = torch.bincount(i, minlength=len(start))
    first = have.cumsum(0) - have
    # The best cell of each is the reference that D·u and the atoms are measured from.
    best = level.new_full((len(start),), -torch.inf).scatter_reduce_(0, i, level, "amax")
    star = torch.zeros_like(start).scatter_reduce_(0, i, j.where(level == best[i], -1), "amax")
    reference = y.centre[star]
    beside = _with_row((y.centre[j] - reference[i]).to(local.dtype), 0.0)
    gap = _with_row((level - best[i]).to(local.dtype), lowest(local))
    moments = moments * moments.new_tensor(multinomials(d, polynomial))
    mass, top = local.new_empty(n + 1), local.new_empty(n + 1)
    mean = torch.zeros_like(local)
    for batch in _batches(count, have, moments.shape[-1]):
        points = _padded(start[batch], count[batch], n)
        pair = _padded(first[batch], have[batch], len(j))
        u, q, at = local[points], moments[pair], points.flatten()
        tile = torch.baddbmm(gap[pair][..., None], beside[pair], u.mT)
        peak = tile.amax(1, keepdim=True)
        weights = exponentials_(tile.sub_(peak))
        powers = monomials(u, degree)
        sums = q.mT @ weights
        total = (sums * powers).sum(1)
        if averages:
            # Σ_j w_ij v_j is the slope in u; atoms are Y + v.
            shares = weights.mul_(q @ powers)
            first_moment = beside[pair].mT @ shares
            for axis, (place, factor) in enumerate(slopes(d, degree)):
                slope = powers[:, list(place)] * powers.new_tensor(factor)[:, None]
                first_moment[:, axis] += (sums * slope).sum(1)
            mean.index_copy_(0, at, (first_moment / total[:, None]).mT.flatten(0, 1))
        mass.index_copy_(0, at, total.flatten())
        top.index_copy_(0, at, peak.flatten())
    here = x.order[begin : begin + n]
    u = local[:n].double()
    towards = (x.centre[cells] - reference)[owner]
    log_sum = mass[:n].double().log() + top[:n] + best[owner]
    log_sum = log_sum - (towards * u).sum(-1) - u.square().sum(-1) / 2
    mean = reference[owner].to(local.dtype) + mean[:n] if averages else mean[:n, :0]
    return here, log_sum, mean


def _with_row(values: Tensor, last: float) -> Tensor:
    """The same with one row more, for what pads ragged ranges."""
    return torch.cat([values, values.new_full((1, *values.shape[1:]), last)])


def _batches(points: Tensor, pairs: Tensor, numbers: int) -> Iterator[Tensor]:
    """Groups of cells with about as many points and pairs, to be padded to one shape."""
    key = (1024 * _rung(points, 1.5) + _rung(pairs, 3.0)).masked_fill(pairs == 0, -1)
    key, order = key.sort(stable=True)
    rungs, count = key.unique_consecutive(return_counts=True)
    wide = points[order] * (pairs[order] + numbers)
    for rung, group, size in zip(
        rungs.tolist(), order.split(count.tolist()), wide.split(count.tolist()), strict=True
    ):
        if rung >= 0:
            yield from group.split(max(1, sizes(size.device.type).cell_tile // int(size.max())))


def _rung(count: Tensor, ratio: float) -> Tensor:
    return (count.double().log() / math.log(ratio)).ceil().long()


def _padded(start: Tensor, count: Tensor, spare: int) -> Tensor:
    """Ragged ranges of indices as rows of one length, filled up with a spare one."""
    steps = torch.arange(int(count.max()), device=count.device)
    return torch.where(steps < count[:, None], start[:, None] + steps, spare)
