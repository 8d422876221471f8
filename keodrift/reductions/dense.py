"""Dense engine: stores the N×M block of costs once and reuses it. Reference and small problems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from keodrift.reductions.frame import Frame
from keodrift.reductions.kernel import GibbsKernel

# How far (in logits) potentials may move from the absorbed ones. Sums stay above exp(−40) ≈ 4e-18
# there, far above what underflowed when the block was absorbed.
ABSORBED_REACH = 40.0


@dataclass
class _Absorbed:
    """``weights_ij = exp(row_i + col_j − c_ij)``: a pass is then one matrix-vector product."""

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
        weights, top = self._softmax_weights(bias)
        mass = top.double() + weights.sum(-1).log_().double()
        return mass.masked_fill(top < lowest(top), -torch.inf)

    def _average(self, bias: Tensor, values: Tensor) -> Tensor:
        if self.block.requires_grad:
            return torch.softmax(bias[:, None, :] - self.block, -1) @ values
        weights, _ = self._softmax_weights(bias)
        return (weights @ values).div_(weights.sum(-1, keepdim=True))

    def _softmax_weights(self, bias: Tensor) -> tuple[Tensor, Tensor]:
        """``exp(bias_j − c_ij − top_i)`` and the maximum ``top`` of each row."""
        logits = bias[:, None, :] - self.block
        top = logits.amax(-1)
        floor = top.clamp(min=lowest(top))[..., None]  # finite, for rows without atoms
        return exponentials_(logits.sub_(floor)), top

    def _plain_sum(self, bias: Tensor, shift: Tensor, values: Tensor | None = None) -> Tensor:
        if not self._absorbed or self._rest(bias, shift).abs().max() >= ABSORBED_REACH:
            self._absorb(bias, shift)
        _, col, weights = self._here()
        change = bias - col
        factor = (change - change.amax(-1, keepdim=True)).exp_()[..., None]
        total = weights @ (factor if values is None else factor * values)
        return total * self._rest(bias, shift).exp_()[..., None]

    def _floored_sum(self, bias: Tensor, shift: Tensor, values: Tensor, floor: float) -> Tensor:
        logits = bias[:, None, :] - self.block - shift[..., None]
        weights = logits.exp() if logits.requires_grad else exponentials_(logits)
        return raise_to(floor, weights, self.frame.mask_self) @ values

    def _here(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row part, column part and weights of the absorbed block, seen from this kernel."""
        kept = self._absorbed[0]
        if self._turned:
            return kept.col, kept.row, kept.weights.mT
        return kept.row, kept.col, kept.weights

    def _rest(self, bias: Tensor, shift: Tensor) -> Tensor:
        """What multiplies a row's product, in logits: how far the potentials have moved."""
        row, col, _ = self._here()
        return (bias - col).amax(-1, keepdim=True) - row - shift

    def _absorb(self, bias: Tensor, shift: Tensor) -> None:
        block = self.block.detach()
        row, dead = -shift, torch.isneginf(bias)
        col = bias
        if bool(dead.any()):
            # An atom without weight has no bias to absorb; its column is scaled to a maximum of 1.
            col = torch.where(dead, -(row[..., None] - block).amax(-2), bias)
        weights = exponentials_((col[:, None, :] - block).add_(row[..., None]))
        kept = _Absorbed(col, row, weights.mT) if self._turned else _Absorbed(row, col, weights)
        self._absorbed[:] = [kept]


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
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    if form == "quadratic":
        return distance.square_().div_(2)
    return distance.mul_(frame.cost.factor / frame.tau)
