"""Optimal transport on a line: the monotone map between two weighted clouds, by quantiles."""

from __future__ import annotations

import torch
from torch import Tensor

TIES = 16 * torch.finfo(torch.float64).eps  # of the size: what projections round to


def monotone_shift(
    z: Tensor,
    source: Tensor,
    a: Tensor,
    target: Tensor,
    b: Tensor,
    size: Tensor | float | None = None,
) -> Tensor:
    """T(z) − z for the monotone map T of one cloud on a line onto another.

    An atom goes to the mean of the quantiles that its mass takes up, atoms at one place to one
    mean. Between atoms T is linear, beyond the last ones a translation: of a cloud onto itself it
    is the identity everywhere.

    Args:
        z: Where, float64 ``(…, K)``; the result is differentiable in it.
        source: The cloud that is moved, float64 ``(…, N)``.
        a: Its weights with sum 1, ``(…, N)``; atoms of weight 0 are not there.
        target: The cloud it is moved onto, float64 ``(…, M)``.
        b: Its weights with sum 1, ``(…, M)``.
        size: Of the coordinates whose roundings the line has, ``(…, 1)``, such as the radius of
            the cloud that was projected; the largest on the line by default.

    Returns:
        ``(…, K)``, in units of length.

    Source: Santambrogio, "Optimal transport for applied mathematicians", 2015, chapter 2.

    Example:
        >>> x, y = torch.tensor([0.0, 1.0]).double(), torch.tensor([3.0, 2.0, 3.0, 2.0]).double()
        >>> halves, quarters = torch.full((2,), 0.5).double(), torch.full((4,), 0.25).double()
        >>> monotone_shift(torch.tensor([-5.0, 0.0, 0.5, 1.0]).double(), x, halves, y, quarters)
        tensor([2., 2., 2., 2.], dtype=torch.float64)
    """
    if size is None:
        size = torch.where(a > 0, source.abs(), 0.0).amax(-1, keepdim=True)
    atoms, shifts = _shifts(source, a, target, b, TIES * size)
    last = (a > 0).sum(-1, keepdim=True) - 1
    above = torch.searchsorted(atoms, z.detach().contiguous())
    below, above = (above - 1).clamp(min=0).minimum(last), above.minimum(last)
    start, end = atoms.gather(-1, below), atoms.gather(-1, above)
    gap = torch.where(end > start, end - start, torch.inf)  # beyond the last ones there is no slope
    before, after = shifts.gather(-1, below), shifts.gather(-1, above)
    return before + (z - start) / gap * (after - before)


def _shifts(
    source: Tensor, a: Tensor, target: Tensor, b: Tensor, ties: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The atoms in order, those without weight at infinity behind them, and how far they go.

    Those nearer than ``ties`` are at one place.
    """
    atoms, order = source.masked_fill(a == 0, torch.inf).sort(-1)
    levels = torch.nn.functional.pad(_levels(a.gather(-1, order)), (1, 0))
    low = levels.gather(-1, torch.searchsorted(atoms, atoms - ties))
    high = levels.gather(-1, torch.searchsorted(atoms, atoms + ties, right=True))

    values, order = target.sort(-1)
    mass = b.gather(-1, order)
    ends = _levels(mass)
    starts = torch.nn.functional.pad(ends[..., :-1], (1, 0))
    sums = torch.nn.functional.pad(((ends - starts) * values).cumsum(-1)[..., :-1], (1, 0))
    final = values.shape[-1] - 1

    def place(level: Tensor, right: bool) -> Tensor:
        return torch.searchsorted(ends, level, right=right).clamp(max=final)

    def integral(at: Tensor, level: Tensor) -> Tensor:
        """Of the quantile function up to a level, which lies in the step ``at``."""
        return sums.gather(-1, at) + (level - starts.gather(-1, at)) * values.gather(-1, at)

    first, final_step = place(low, right=True), place(high, right=False)
    mean = integral(final_step, high) - integral(first, low)
    mean = mean / (high - low).clamp_min(torch.finfo(mean.dtype).tiny)
    # Roundings stay between the quantiles at either end, however little an atom weighs.
    mean = mean.clamp(values.gather(-1, first), values.gather(-1, final_step))
    return atoms, mean - atoms


def _levels(weights: Tensor) -> Tensor:
    """Cumulated weights, of which the last are exactly 1."""
    sums = weights.cumsum(-1)
    return sums / sums[..., -1:]
