"""Blocks of pairs as tensors: costs, exponentials and the excluded diagonal, for every engine."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from keodrift.costs import Cost
from keodrift.reductions.frame import Frame
from keodrift.reductions.sizes import sizes


def working_cost(frame: Frame, x: Tensor, y: Tensor) -> Tensor:
    """The pair cost of a frame on tensors, ``(B, N, M)``, from coordinate differences."""
    if frame.quadratic:
        return _half_squares(x, y)
    cost = pair_costs(frame.cost, x, y)
    return cost * frame.rate if x.requires_grad else cost.mul_(frame.rate)


def pair_costs(cost: Cost, x: Tensor, y: Tensor) -> Tensor:
    """C of every pair of ``x (B, N, d)`` and ``y (B, M, d)``, by distances where that is enough."""
    if cost.curvature is not None:
        return _half_squares(x, y) * cost.curvature
    return _expressed(cost, x, y) if cost.radial is None else cost.radial(_distances(x, y))


def _expressed(cost: Cost, x: Tensor, y: Tensor) -> Tensor:
    """By the expression, which holds every coordinate of a pair: some rows at a time."""
    if x.requires_grad:
        return cost.pairs(x, y)
    out = x.new_empty(*x.shape[:-1], y.shape[-2])
    for rows in row_blocks(out, x.shape[-1]):
        out[:, rows] = cost.pairs(x[:, rows], y)
    return out


def _half_squares(x: Tensor, y: Tensor) -> Tensor:
    if x.requires_grad:
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1) / 2
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return _by_products(x, y)
    return _distances(x, y).square_().div_(2)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    if x.requires_grad:
        square = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
        # A floor under the root makes the derivative at coinciding points 0 instead of NaN.
        return square.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return _by_products(x, y).mul_(2).sqrt_()
    # Distances from products of coordinates would lose half the digits of small ones.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _by_products(x: Tensor, y: Tensor) -> Tensor:
    """½‖x−y‖² = ½‖x‖² + ½‖y‖² − x·y, in float64 before it is rounded: exact where it cancels.

    Differences, which `torch.cdist` takes, are five times slower on a CPU.
    """
    x, y = x.double(), y.double()
    left = torch.cat([-x, x.square().sum(-1, keepdim=True) / 2, torch.ones_like(x[..., :1])], -1)
    right = torch.cat([y, torch.ones_like(y[..., :1]), y.square().sum(-1, keepdim=True) / 2], -1)
    out = torch.empty(*x.shape[:-1], y.shape[-2], dtype=torch.float32, device=x.device)
    for rows in row_blocks(out):
        out[:, rows].copy_(left[:, rows] @ right.mT).clamp_(min=0)
    return out


def row_blocks(block: Tensor, numbers: int = 1) -> Iterator[slice]:
    """Rows of ``(B, N, M)`` to be worked on at a time: on a CPU as many as its cache holds.

    With so many numbers a pair.
    """
    b, n, m = block.shape
    step = max(1, sizes(block.device.type).rows // max(1, b * m * numbers))
    return (slice(i, i + step) for i in range(0, n, step))


def exponentials_(logits: Tensor) -> Tensor:
    """Exponentials in place, never denormal.

    Denormal results cost ten times a normal one and denormal weights slow every product; raised
    to the smallest normal number, about 1e-38 beside a row's sum, they change nothing.
    """
    return logits.clamp_(min=math.log(torch.finfo(logits.dtype).tiny) + 1).exp_()


def weighted_sums(weights: Tensor, values: Tensor | None) -> Tensor:
    """``Σ_j w_ij v_j``, ``(B, N, v)``, for few values; without any they are 1 and v = 1.

    Products are made in tiles of columns: where those are few, the transpose is up to ten times
    faster on a CPU, but for a single vector, which has a routine of its own.
    """
    if values is None:
        return weights.sum(-1, keepdim=True)
    if values.shape[-1] == len(values) == 1:
        return weights @ values
    return (values.mT @ weights.mT).mT.contiguous()


def coupling_weights(logits: Tensor, own: tuple[Tensor, Tensor] | None, rows: slice) -> Tensor:
    """A = exp(logits), divided by √(1 + A exp(s_i + t_j)) where ``own = (s, t)`` is given."""
    if own is not None:
        s, t = own[0][:, rows, None], own[1][:, None, :]
        logits = logits - torch.nn.functional.softplus(logits + s + t) / 2
    return logits.clamp(max=0).exp()


def log_sum(logits: Tensor) -> Tensor:
    """Log of the sum of exponentials along rows, ``(…, N)`` float64, with its slope.

    The largest logit is taken off first: rounded together with it, where it is large, the sum would
    give slopes whose weights do not sum to 1.
    """
    top = logits.detach().amax(-1, keepdim=True).clamp_(min=lowest(logits))
    return torch.logsumexp(logits - top, -1).double() + top[..., 0].double()


def lowest(like: Tensor) -> float:
    """A number below every logit, of which differences stay finite."""
    return torch.finfo(like.dtype).min / 4


def raise_to(floor: Tensor | None, weights: Tensor, mask_self: bool, i: int) -> Tensor:
    """Raises kernel values to a floor, if there is one; excluded pairs stay at 0."""
    if floor is None:
        return weights
    weights = torch.maximum(weights, floor)
    if mask_self:
        _diagonal(weights, i, 0).zero_()
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
