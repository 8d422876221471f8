"""Tiled engine: streams cache-sized blocks through BLAS. Linear memory, any d, no compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from keodrift.reductions.blocks import (
    coupling_weights,
    exclude_self,
    exponentials_,
    log_sum,
    lowest,
    raise_to,
    weighted_sums,
    working_cost,
)
from keodrift.reductions.engines.pairs import PairKernel
from keodrift.reductions.frame import Frame
from keodrift.reductions.kernel import Engine
from keodrift.reductions.sizes import sizes

# Largest error of a logit, in units of 1, that matrix products may bring by cancellation.
LOGIT_ERROR = 1e-4


@dataclass(frozen=True)
class Tiled(Engine):
    """Streams blocks."""

    name = "tiled"

    def kernel(self, frame: Frame, batch: tuple[int, ...]) -> TiledKernel:
        """The kernel; nothing is stored."""
        return TiledKernel(self, frame, batch)


class TiledKernel(PairKernel):
    """Blocks of ``bias_j − c_ij`` with a running maximum along each row of blocks."""

    def _stable_log_sum(self, bias: Tensor) -> Tensor:
        if self.frame.x.requires_grad:
            return self._by_rows(lambda logits, _: log_sum(logits), bias, -1)
        # One array for all blocks: many small results between the freed tiles would pin the heap.
        out = bias.new_empty(self.frame.x.shape[:2], dtype=torch.float64)
        for rows, top, mass, _ in self._stream(bias, None):
            out[:, rows] = (top + mass.log()).masked_fill_(top < lowest(bias) / 2, -torch.inf)
        return out

    def _stable_average(self, bias: Tensor, values: Tensor) -> Tensor:
        if self.frame.x.requires_grad:
            return self._by_rows(
                lambda logits, _: weighted_sums(torch.softmax(logits, -1), values), bias, -2
            )
        out = values.new_empty(*self.frame.x.shape[:2], values.shape[-1])
        for rows, _, mass, total in self._stream(bias, values):
            out[:, rows] = total / mass[..., None].to(total.dtype)
        return out

    def _plain_sum(self, bias: Tensor, shift: Tensor, values: Tensor | None = None) -> Tensor:
        frame = self.frame
        out = frame.y.new_zeros(*frame.x.shape[:2], 1 if values is None else values.shape[-1])
        for i, i_end, j, j_end in self._tiles():
            logits = self._logits(bias, i, i_end, j, j_end)
            logits.sub_(shift[:, i:i_end, None] + self._row_term(i, i_end))
            weights = exponentials_(logits)
            some = None if values is None else values[:, j:j_end]
            out[:, i:i_end] += weighted_sums(weights, some)
        return out

    def _coupling_sum(
        self,
        bias: Tensor,
        shift: Tensor,
        values: Tensor,
        floor: Tensor | None,
        own: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        def verb(logits: Tensor, i: int) -> Tensor:
            rows = slice(i, i + logits.shape[1])
            logits = logits - shift[:, rows, None]
            weights = coupling_weights(logits, own, rows)
            return weighted_sums(raise_to(floor, weights, self.frame.mask_self, i), values)

        return self._by_rows(verb, bias, -2)

    @cached_property
    def _products(self) -> bool:
        """Whether ½‖x‖² + ½‖y‖² − x·y is exact enough here; else differences are taken."""
        frame = self.frame
        if not frame.quadratic:
            return False
        squares = [z.detach().square().sum(-1).max() for z in (frame.x, frame.y)]
        reach = float(torch.maximum(*squares))
        return torch.finfo(frame.x.dtype).eps * reach <= LOGIT_ERROR

    @cached_property
    def _half_norms(self) -> tuple[Tensor, Tensor]:
        frame = self.frame
        return frame.x.detach().square().sum(-1) / 2, frame.y.square().sum(-1) / 2

    def _omitted(self, squares: Tensor) -> Tensor | float:
        return self.eps * squares if self._products else 0.0

    def _row_term(self, i: int, i_end: int) -> Tensor | float:
        return self._half_norms[0][:, i:i_end, None] if self._products else 0.0

    def _logits(self, bias: Tensor, i: int, i_end: int, j: int, j_end: int) -> Tensor:
        """``bias_j − c_ij`` up to the row term, on one tile."""
        x, y = self.frame.x.detach()[:, i:i_end], self.frame.y[:, j:j_end]
        if self._products:
            start = (bias - self._half_norms[1])[:, None, j:j_end]
            tile = torch.baddbmm(start, x, y.mT)
        else:
            tile = bias[:, None, j:j_end] - working_cost(self.frame, x, y)
        if self.frame.mask_self:
            tile.neg_()
            tile = exclude_self(tile, i, j).neg_()
        return tile

    def _tiles(self) -> Iterator[tuple[int, int, int, int]]:
        frame = self.frame
        (b, n, d), m = frame.x.shape, frame.y.shape[1]
        wide = b * (1 if frame.cost.by_distance else d)
        tile = sizes(frame.x.device.type).tile
        cols = max(1, min(m, 2048, tile // wide))
        rows = max(1, min(n, tile // (wide * cols)))
        for i in range(0, n, rows):
            for j in range(0, m, cols):
                yield i, min(i + rows, n), j, min(j + cols, m)

    def _stream(
        self, bias: Tensor, values: Tensor | None
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Yields rows with their ``top, mass, total``: maximum, Σ exp, Σ exp·values."""
        low = lowest(bias)
        m = self.frame.y.shape[1]
        for i, i_end, j, j_end in self._tiles():
            tile = self._logits(bias, i, i_end, j, j_end)
            peak = tile.amax(-1).clamp_(min=low)
            if j == 0:
                top = torch.full_like(peak, low)
                mass = torch.zeros_like(peak)
                total = tile.new_zeros(*peak.shape, 0 if values is None else values.shape[-1])
            new_top = torch.maximum(top, peak)
            exponentials_(tile.sub_(new_top[..., None]))
            decay = (top - new_top).exp_()
            mass.mul_(decay).add_(tile.sum(-1))
            if values is not None:
                total.mul_(decay[..., None]).add_(weighted_sums(tile, values[:, j:j_end]))
            top = new_top
            if j_end == m:
                row_term = self._row_term(i, i_end)
                shift = row_term if isinstance(row_term, float) else row_term[..., 0]
                yield slice(i, i_end), (top - shift).double(), mass.double(), total

    def _by_rows(self, verb: Callable[[Tensor, int], Tensor], bias: Tensor, dim: int) -> Tensor:
        """Applies a verb to blocks of logits that the backward pass computes again."""
        frame = self.frame
        (b, n, d), m = frame.x.shape, frame.y.shape[1]
        rows = max(1, sizes(frame.x.device.type).graph // (b * m * d))

        def on_rows(x: Tensor, i: int) -> Tensor:
            block = working_cost(frame, x, frame.y)
            if frame.mask_self:
                block = exclude_self(block, i, 0)
            return verb(bias[:, None, :] - block, i)

        parts = [
            checkpoint(on_rows, frame.x[:, i : i + rows], i, use_reentrant=False)
            for i in range(0, n, rows)
        ]
        return torch.cat(parts, dim)
