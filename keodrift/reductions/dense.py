"""Dense engine: stores the N×M block of costs once and reuses it. Reference and small problems."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from keodrift.reductions.frame import Frame
from keodrift.reductions.kernel import GibbsKernel
from keodrift.reductions.precision import in_full_precision

# Absorbed weights stop at exp(−55), so that products with them are not denormal, which cost ten
# times a normal one; sums are trusted within exp(±25), where that is lost in rounding.
ABSORBED_LEAST, ABSORBED_REACH = -55.0, 25.0

CACHED_PAIRS = 1 << 18  # worked on at a time, so that they stay in a processor's cache


@dataclass
class _Absorbed:
    """``weights_ij = exp(row_i + col_j − C_ij/τ)``: a pass is then one matrix-vector product.

    Row and column parts are float64; they are swapped and the weights transposed for the
    transposed kernel.
    """

    row: Tensor
    col: Tensor
    weights: Tensor


class DenseKernel(GibbsKernel):
    """Holds ``c_ij`` for all pairs: O(NM) memory, one pass of exponentials a verb.

    Passes about a guess go through a second block with the potentials absorbed, shared with the
    transposed kernel, until the potentials have moved too far from it.
    """

    engine = "dense"

    def __init__(self, frame: Frame, batch: tuple[int, ...]) -> None:
        super().__init__(frame, batch)
        self._absorbed: list[_Absorbed] = []
        self._turned = False  # whether rows here are columns of the absorbed block

    @cached_property
    @in_full_precision
    def block(self) -> Tensor:
        """``c_ij`` in working coordinates, ``(B, N, M)``; +inf on excluded pairs."""
        block = working_cost(self.frame, self.frame.x, self.frame.y)
        return exclude_self(block, 0, 0) if self.frame.mask_self else block

    @cached_property
    def T(self) -> GibbsKernel:
        """The transposed kernel, on the same blocks."""
        turned = DenseKernel(self.frame.transposed(), self.batch)
        turned.__dict__["block"] = self.block.detach().mT
        turned._absorbed, turned._turned = self._absorbed, not self._turned
        return turned

    def _log_sum(self, bias: Tensor) -> Tensor:
        if self.block.requires_grad:
            return torch.logsumexp(bias[:, None, :] - self.block, -1).double()
        mass = bias.new_empty(self.block.shape[:-1], dtype=torch.float64)
        for rows, weights, top in self._softmax_weights(bias):
            found = top.double() + weights.sum(-1).log_().double()
            mass[:, rows] = found.masked_fill_(top < lowest(top), -torch.inf)
        return mass

    def _average(self, bias: Tensor, values: Tensor) -> Tensor:
        if self.block.requires_grad:
            return torch.softmax(bias[:, None, :] - self.block, -1) @ values
        mean = values.new_empty(*self.block.shape[:-1], values.shape[-1])
        for rows, weights, _ in self._softmax_weights(bias):
            mean[:, rows] = (weights @ values).div_(weights.sum(-1, keepdim=True))
        return mean

    def _softmax_weights(self, bias: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some rows after others: ``exp(bias_j − c_ij − top_i)`` and the maximum ``top_i``."""
        for rows in row_blocks(self.block):
            logits = bias[:, None, :] - self.block[:, rows]
            top = logits.amax(-1)
            floor = top.clamp(min=lowest(top))[..., None]  # finite, for rows without atoms
            yield rows, exponentials_(logits.sub_(floor)), top

    def _plain_sum(self, bias: Tensor, shift: Tensor, values: Tensor | None = None) -> Tensor:
        return self._sum(bias, shift, values, 0.0)

    def _floored_sum(self, bias: Tensor, shift: Tensor, values: Tensor, floor: float) -> Tensor:
        if not self.block.requires_grad:
            return self._sum(bias, shift, values, floor)
        weights = (bias[:, None, :] - self.block - shift[..., None]).exp()
        return raise_to(floor, weights, self.frame.mask_self) @ values

    def _sum(self, bias: Tensor, shift: Tensor, values: Tensor | None, floor: float) -> Tensor:
        width = 1 if values is None else values.shape[-1]
        total = bias.new_empty(*self.block.shape[:-1], width)
        for rows in row_blocks(self.block):
            logits = bias[:, None, :] - self.block[:, rows]
            weights = exponentials_(logits.sub_(shift[:, rows, None]))
            if floor > 0:
                weights = raise_to(floor, weights, self.frame.mask_self, rows.start)
            total[:, rows] = weights.sum(-1, keepdim=True) if values is None else weights @ values
        return total

    def _about(
        self, bias: Tensor, shift: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        bias = bias.detach().double().reshape(self.frame.col.shape)
        found = self._through_absorbed(bias, values) if self._absorbed else None
        if found is None:
            self._absorb(bias, shift.reshape(self.frame.row.shape))
            found = self._through_absorbed(bias, values)
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
        total = weights @ (factor if values is None else torch.cat([factor, factor * values], -1))
        mass = total[..., 0].double().log()
        low, high = mass.aminmax()
        if not (float(low) > -ABSORBED_REACH and float(high) < ABSORBED_REACH):
            return None
        return mass.add_(top).sub_(row), total[..., 1:] / total[..., :1]

    def _absorb(self, bias: Tensor, shift: Tensor) -> None:
        block, frame = self.block.detach(), self.frame
        row, dead = frame.row - shift, torch.isneginf(bias)
        col = bias + frame.col
        if bool(dead.any()):
            # An atom without weight has no bias to absorb; its column is scaled to a maximum of 1.
            col = torch.where(dead, -(row[..., None] - block).amax(-2), col)
        # Both parts are rounded to the block's dtype, so that they are exactly what it absorbed.
        top = col.amax(-1, keepdim=True)
        row, col = (row + top).to(block.dtype), (col - top).to(block.dtype)
        weights = torch.empty_like(block)
        for rows in row_blocks(block):
            torch.sub(col[:, None, :], block[:, rows], out=weights[:, rows])
            weights[:, rows].add_(row[:, rows, None]).clamp_(min=ABSORBED_LEAST).exp_()
        row, col = row.double() - frame.row, col.double() - frame.col
        kept = _Absorbed(col, row, weights.mT) if self._turned else _Absorbed(row, col, weights)
        self._absorbed[:] = [kept]


def row_blocks(block: Tensor) -> Iterator[slice]:
    """Rows of ``(B, N, M)`` that fit into a processor's cache; on a GPU all of them."""
    b, n, m = block.shape
    step = max(1, CACHED_PAIRS // max(1, b * m)) if block.device.type == "cpu" else max(1, n)
    return (slice(i, i + step) for i in range(0, n, step))


def exponentials_(logits: Tensor) -> Tensor:
    """Exponentials in place, never denormal.

    Denormal results cost ten times a normal one and denormal weights slow every product; raised
    to the smallest normal number, about 1e-38 beside a row's sum, they change nothing.
    """
    return logits.clamp_(min=math.log(torch.finfo(logits.dtype).tiny) + 1).exp_()


def lowest(like: Tensor) -> float:
    """A number below every logit, of which differences stay finite."""
    return torch.finfo(like.dtype).min / 4


def raise_to(floor: float, weights: Tensor, mask_self: bool, i: int = 0, j: int = 0) -> Tensor:
    """Raises kernel values to a floor; excluded pairs stay at 0."""
    weights = weights.clamp(min=floor)
    if mask_self:
        _diagonal(weights, i, j).zero_()
    return weights


def exclude_self(block: Tensor, i: int, j: int) -> Tensor:
    """Gives pairs with equal index infinite cost, in a block that starts at (i, j)."""
    block = block.clone() if block.requires_grad else block
    _diagonal(block, i, j).fill_(torch.inf)
    return block


def _diagonal(block: Tensor, i: int, j: int) -> Tensor:
    offset = i - j
    rows, cols = block.shape[-2:]
    if offset >= cols or -offset >= rows:
        return block[..., :0, 0]
    return block.diagonal(offset, -2, -1)


def working_cost(frame: Frame, x: Tensor, y: Tensor) -> Tensor:
    """The pair cost of a frame on tensors, ``(B, N, M)``, from coordinate differences."""
    form = frame.cost.form
    if form == "expression":
        return frame.cost.pairs(x, y) / frame.tau
    if x.requires_grad:
        square = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
        if form == "quadratic":
            return square / 2
        # A floor under the root makes the derivative at coinciding points 0 instead of NaN.
        return square.clamp_min(torch.finfo(x.dtype).tiny).sqrt() * (frame.cost.factor / frame.tau)
    if form == "quadratic" and x.dtype == torch.float32 and x.device.type == "cpu":
        return _by_products(x, y)
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    if form == "quadratic":
        return distance.square_().div_(2)
    return distance.mul_(frame.cost.factor / frame.tau)


def _by_products(x: Tensor, y: Tensor) -> Tensor:
    """½‖x−y‖² = ½‖x‖² + ½‖y‖² − x·y, in float64 before it is rounded: exact where it cancels.

    Differences, which `torch.cdist` takes, are five times slower on a CPU.
    """
    x, y = x.double(), y.double()
    left = torch.cat([-x, x.square().sum(-1, keepdim=True) / 2, torch.ones_like(x[..., :1])], -1)
    right = torch.cat([y, torch.ones_like(y[..., :1]), y.square().sum(-1, keepdim=True) / 2], -1)
    out = torch.empty(*x.shape[:-1], y.shape[-2], dtype=torch.float32)
    for rows in row_blocks(out):
        out[:, rows].copy_(left[:, rows] @ right.mT).clamp_(min=0)
    return out
