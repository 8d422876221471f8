"""Polynomials that stand for exp(u·v) on small cells, with a bound on the relative error.

About the centres X, Y of two cells, with x = X + u, y = Y + v and D = X − Y,

    −½‖x − y‖² = −½‖D‖² − D·u + D·v − ½‖u‖² − ½‖v‖² + u·v.

Only exp(u·v) mixes the two points. On cells it is near 1 and a polynomial in u·v replaces it,

    exp(u·v) ≈ Σ_k c_k (u·v)^k = Σ_α c_|α| |α|!/α! u^α v^α,

with a relative error of at most ε in every pair, hence in every sum of pairs.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

LONGEST = 48  # terms of a polynomial in one variable, far beyond what small cells need


@cache
def exponential_polynomial(reach: float, accuracy: float, with_slope: bool) -> tuple[float, ...]:
    """The shortest c with |Σ_k c_k s^k − exp(s)| ≤ accuracy·exp(s) wherever |s| ≤ reach.

    Args:
        reach: Largest |u·v|.
        accuracy: Relative error that is allowed.
        with_slope: Whether the derivative must be as near to exp, too.
    """
    reach = max(reach, 1e-3)
    probes, slope = np.linspace(-1, 1, 1001), np.polynomial.polynomial.polyder
    exact = np.exp(reach * probes)
    for terms in range(1, LONGEST):
        nodes = np.cos(np.pi * (np.arange(4 * terms) + 0.5) / (4 * terms))
        basis = np.polynomial.chebyshev.chebvander(nodes, terms - 1)
        # Least squares of the relative error at Chebyshev nodes: near the best polynomial.
        fit, *_ = np.linalg.lstsq(basis * np.exp(-reach * nodes)[:, None], np.ones(len(nodes)))
        coefficients = np.polynomial.chebyshev.cheb2poly(fit) / reach ** np.arange(terms)
        error = max(
            float(np.abs(np.polynomial.polynomial.polyval(reach * probes, c) / exact - 1).max())
            for c in ([coefficients, slope(coefficients)] if with_slope else [coefficients])
        )
        if error <= accuracy:
            break
    return tuple(map(float, coefficients))


@cache
def multi_indices(d: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """All α ∈ ℕ^d with |α| ≤ degree: by |α|, then by the first axis that is not 0."""
    last: list[tuple[int, ...]] = [(0,) * d]
    every = list(last)
    for total in range(1, degree + 1):
        last = [
            tuple(n + (c == axis) for c, n in enumerate(a))
            for axis in range(d)
            for a in last[len(last) - _suffix(d - axis, total - 1) :]
        ]
        every += last
    return tuple(every)


def _suffix(axes: int, total: int) -> int:
    """How many multi-indices of so many axes have a given total."""
    return math.comb(total + axes - 1, axes - 1)


@cache
def multinomials(d: int, polynomial: tuple[float, ...]) -> tuple[float, ...]:
    """c_|α| |α|!/α! for every multi-index up to the polynomial's degree."""
    return tuple(
        polynomial[sum(a)] * math.factorial(sum(a)) / math.prod(map(math.factorial, a))
        for a in multi_indices(d, len(polynomial) - 1)
    )


def monomials(points: Tensor, degree: int) -> Tensor:
    """u^α of ``(G, n, d)`` points up to a degree, ``(G, P, n)``, in the order of the indices."""
    d = points.shape[-1]
    out = points.new_empty(len(points), len(multi_indices(d, degree)), points.shape[1])
    out[:, 0] = 1
    end = 1
    for total in range(1, degree + 1):
        at = end
        for axis in range(d):
            # u_c times all monomials of one degree less in the axes from c on.
            size = _suffix(d - axis, total - 1)
            last = out[:, end - size : end]
            torch.mul(last, points[:, None, :, axis], out=out[:, at : at + size])
            at += size
        end = at
    return out


@cache
def slopes(d: int, degree: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """∂u^α/∂u_c = α_c u^β along each axis c: the places of β and the factors α_c, for every α."""
    place = {a: i for i, a in enumerate(multi_indices(d, degree))}
    return tuple(
        (
            tuple(place[(*a[:c], max(a[c] - 1, 0), *a[c + 1 :])] for a in place),
            tuple(a[c] for a in place),
        )
        for c in range(d)
    )
