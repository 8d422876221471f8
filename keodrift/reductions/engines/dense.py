"""Dense engine: stores the N×M block of costs once and reuses it. Reference and small problems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from keodrift.reductions.blocks import (
    coupling_weights,
    exclude_self,
    exponentials_,
    log_sum,
    lowest,
    raise_to,
    row_blocks,
    weighted_sums,
    working_cost,
)
from keodrift.reductions.engines.pairs import PairKernel
from keodrift.reductions.engines.tiled import Tiled
from keodrift.reductions.frame import Frame
from keodrift.reductions.kernel import Engine, GibbsKernel, in_full_precision
from keodrift.reductions.shortage import within_memory
from keodrift.reductions.sizes import sizes

# Absorbed weights stop at exp(−55), so that products with them are not denormal, which cost ten
# times a normal one; sums are trusted within exp(±25), where that is lost in rounding.
ABSORBED_LEAST, ABSORBED_REACH = -55.0, 25.0


@dataclass(frozen=True)
class Dense(Engine):
    """Stores all pairs."""

    name = "dense"
    stores = True

    def kernel(self, frame: Frame, batch: tuple[int, ...]) -> PairKernel:
        """The kernel, whose block is formed when it is first asked for.

        A graph keeps the coordinates of all differences: where these are many, it is left to the
        tiled engine, which forms them again for the backward pass.
        """
        x, y = frame.x, frame.y
        if x.requires_grad and x.numel() * y.shape[1] > sizes(x.device.type).stored:
            return Tiled().kernel(frame, batch)
        return DenseKernel(self, frame, batch)


@dataclass
class _Absorbed:
    """``weights_ij = exp(row_i + col_j − c_ij)``: a pass is then one matrix-vector product.

    Row and column parts are float64; they are swapped and the weights transposed for the
    transposed kernel.
    """

    row: Tensor
    col: Tensor
    weights: Tensor


class DenseKernel(PairKernel):
    """Holds ``c_ij`` for all pairs: O(NM) memory, one pass of exponentials a verb.

    Passes about a guess go through a second block with the potentials absorbed, shared with the
    transposed kernel, until the potentials have moved too far from it.
    """

    def __init__(self, engine: Engine, frame: Frame, batch: tuple[int, ...]) -> None:
        super().__init__(engine, frame, batch)
        self._absorbed: list[_Absorbed] = []
        self._turned = False  # whether rows here are columns of the absorbed block

    @cached_property
    @in_full_precision
    def block(self) -> Tensor:
        """``c_ij`` in working coordinates, ``(B, N, M)``; +inf on excluded pairs."""
        block = working_cost(self.frame, self.frame.x, self.frame.y)
        return exclude_self(block, 0, 0) if self.frame.mask_self else block

    def release(self) -> None:
        """Forgets its blocks; they are formed again where they are asked for."""
        super().release()
        self.__dict__.pop("block", None)
        self._absorbed.clear()

    @cached_property
    @within_memory
    def T(self) -> GibbsKernel:
        """The transposed kernel, on the same blocks."""
        turned = DenseKernel(self.engine, self.frame.transposed(), self.batch)
        turned.__dict__["block"] = self.block.detach().mT
        turned._absorbed, turned._turned = self._absorbed, not self._turned
        return turned

    def _stable_log_sum(self, bias: Tensor) -> Tensor:
        if self.block.requires_grad:
            return log_sum(bias[:, None, :] - self.block)
        mass = bias.new_empty(self.block.shape[:-1], dtype=torch.float64)
        for rows, weights, top in self._softmax_weights(bias):
            found = top.double() + weights.sum(-1).log_().double()
            mass[:, rows] = found.masked_fill_(top < lowest(top), -torch.inf)
        return mass

    def _stable_average(self, bias: Tensor, values: Tensor) -> Tensor:
        if self.block.requires_grad:
            return weighted_sums(torch.softmax(bias[:, None, :] - self.block, -1), values)
        mean = values.new_empty(*self.block.shape[:-1], values.shape[-1])
        for rows, weights, _ in self._softmax_weights(bias):
            total = weighted_sums(weights, values)
            mean[:, rows] = total.div_(weights.sum(-1, keepdim=True))
        return mean

    def _softmax_weights(self, bias: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some rows after others: ``exp(bias_j − c_ij − top_i)`` and the maximum ``top_i``."""
        for rows in row_blocks(self.block):
            logits = bias[:, None, :] - self.block[:, rows]
            top = logits.amax(-1)
            floor = top.clamp(min=lowest(top))[..., None]  # finite, for rows without atoms
            yield rows, exponentials_(logits.sub_(floor)), top

    def _plain_sum(self, bias: Tensor, shift: Tensor, values: Tensor | None = None) -> Tensor:
        width = 1 if values is None else values.shape[-1]
        total = bias.new_empty(*self.block.shape[:-1], width)
        for rows in row_blocks(self.block):
            logits = bias[:, None, :] - self.block[:, rows]
            weights = exponentials_(logits.sub_(shift[:, rows, None]))
            total[:, rows] = weighted_sums(weights, values)
        return total

    def _coupling_sum(
        self,
        bias: Tensor,
        shift: Tensor,
        values: Tensor,
        floor: Tensor | None,
        own: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        parts = []
        for rows in row_blocks(self.block):
            logits = bias[:, None, :] - self.block[:, rows] - shift[:, rows, None]
            weights = coupling_weights(logits, own, rows)
            weights = raise_to(floor, weights, self.frame.mask_self, rows.start)
            parts.append(weighted_sums(weights, values))
        return torch.cat(parts, -2)

    def _about(
        self, bias: Tensor, guess: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        found = self._through_absorbed(bias, values) if self._absorbed else None
        if found is None:
            self._absorb(bias, guess)
            found = self._through_absorbed(bias, values)
            if found is None:  # some weight was cut: the transposed kernel must not trust it
                self._absorbed.clear()
        return found

    def _through_absorbed(
        self, bias: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        kept = self._absorbed[0]
        row, col, weights = kept.row, kept.col, kept.weights
        if self._turned:
            row, col, weights = col, row, weights.mT
        change = bias - col
        top = change.amax(-1, keepdim=True)
        factor = (change - top).to(weights.dtype).exp_()[..., None]
        columns = factor if values is None else torch.cat([factor, factor * values], -1)
        total = weighted_sums(weights, columns)
        mass = total[..., 0].double().log()
        if not float(mass.abs().amax()) < ABSORBED_REACH:
            return None
        averages = total[..., 1:]
        if values is not None:
            averages = averages / total[..., :1]
        return mass.add_(top).sub_(row), averages

    def _absorb(self, bias: Tensor, guess: Tensor) -> None:
        block = self.block.detach()
        row, col, dead = -guess, bias, torch.isneginf(bias)
        if bool(dead.any()):
            # An atom without weight has no bias to absorb; its column is scaled to a maximum of 1.
            col = torch.where(dead, -(row[..., None] - block).amax(-2), col)
        # Both parts are rounded to the block's dtype, so that they are exactly what it absorbed;
        # what is rounded is small at the atoms with weight, wherever the others are.
        top = bias.amax(-1, keepdim=True)
        row, col = (row + top).to(block.dtype), (col - top).to(block.dtype)
        weights = torch.empty_like(block)
        for rows in row_blocks(block):
            torch.sub(col[:, None, :], block[:, rows], out=weights[:, rows])
            weights[:, rows].add_(row[:, rows, None]).clamp_(ABSORBED_LEAST, -ABSORBED_LEAST).exp_()
        row, col = row.double(), col.double()
        kept = _Absorbed(col, row, weights.mT) if self._turned else _Absorbed(row, col, weights)
        self._absorbed[:] = [kept]
