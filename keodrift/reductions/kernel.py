"""The two verbs on a Gibbs kernel exp(−C/τ) that is never stored: log-mass and barycentre.

Whatever the points' dtype, vectors with one number a point (biases, log-masses, potentials) are
float64: they cost O(N), and their differences decide the coupling. The N×M arithmetic runs in the
dtype of the points, in its full precision. The verbs are the same for every engine: dtype, bias,
guess, empty rows and graph are settled here, and an engine answers on working coordinates.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, ParamSpec, TypeVar, final

import torch
from torch import Tensor

from keodrift.errors import CostError
from keodrift.precision import full_precision, is_full
from keodrift.reductions.frame import Frame
from keodrift.reductions.shortage import within_memory

# Temperatures τ or 1/τ beyond which slopes of a distance are taken in float64: with quotients by
# distances, single precision would overflow.
STEEP = 1e8


P = ParamSpec("P")
R = TypeVar("R")


def in_full_precision(verb: Callable[P, R]) -> Callable[P, R]:
    """A method of a kernel, in full precision."""

    @functools.wraps(verb)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        kernel: Any = args[0]
        device = kernel.frame.x.device.type
        if is_full(device):  # as in every half-step of a solve, where microseconds count
            return verb(*args, **kwargs)
        with full_precision(device):
            return verb(*args, **kwargs)

    return guarded


class Engine(ABC):
    """How pairs are met: makes a kernel from a frame.

    Attributes:
        name: What ``backend=`` calls it.
        compiles: Whether it needs a compiler.
        stores: Whether its memory grows with the number of pairs.
    """

    name: ClassVar[str]
    compiles: ClassVar[bool] = False
    stores: ClassVar[bool] = False

    @abstractmethod
    def kernel(self, frame: Frame, batch: tuple[int, ...]) -> GibbsKernel:
        """The kernel of a frame whose problems have these batch axes."""


class GibbsKernel(ABC):
    """Pairs of queries x and atoms y under exp(−C/τ); one subclass an engine.

    Both verbs weight the atoms by ``exp(bias_j)``, where ``bias_j = log b_j + g_j/τ`` holds a
    weight and a potential; ``-inf`` removes an atom. They are differentiable in the queries.
    """

    def __init__(self, engine: Engine, frame: Frame, batch: tuple[int, ...]) -> None:
        self.engine, self.frame, self.batch = engine, frame, batch

    # The engine's part, in working coordinates, on (B, …) arrays. Biases and guesses are float64;
    # a guess is given only where no graph is wanted.

    @abstractmethod
    def _log_sum(self, bias: Tensor, guess: Tensor | None) -> Tensor:
        """``log Σ_j exp(bias_j − c_ij)``, float64 ``(B, N)``; ``-inf`` for a row without atoms."""

    @abstractmethod
    def _average(self, bias: Tensor, values: Tensor | None, guess: Tensor | None) -> Tensor:
        """``Σ_j softmax_j(bias_j − c_ij) values_j``, ``(B, N, v)``; any value without atoms.

        Without values they are the working atoms.
        """

    @abstractmethod
    def _coupling_sum(
        self,
        bias: Tensor,
        shift: Tensor,
        values: Tensor,
        floor: Tensor | None,
        own: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """``Σ_j max(A_ij, floor) values_j``, A_ij = exp(bias_j − shift_i − c_ij), ``(B, N, v)``.

        No A is above 1. The floor is ``(B, 1, 1)``. With ``own = (s, t)`` every A is divided by
        √(1 + A exp(s_i + t_j)).
        """

    # What users of a kernel call.

    @cached_property
    def T(self) -> GibbsKernel:
        """The transposed kernel: queries y, atoms x."""
        return self.engine.kernel(self.frame.transposed(), self.batch)

    def release(self) -> None:
        """Gives back what is held of the pairs; it is made again where it is asked for."""
        self.__dict__.pop("T", None)

    @property
    def eps(self) -> float:
        """Rounding of the arithmetic on pairs."""
        return torch.finfo(self.frame.y.dtype).eps

    def rounding(self, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> Tensor:
        """How much of a marginal's L1 error the arithmetic on pairs cannot see, ``(…,)``.

        Averaged over a coupling exp(f + g − C/τ) a b: roundings of biases and logits, of points
        (which move a logit by R·√(2c)), and of a sum of M terms. They do not all point one way:
        their sum is twice the most that was seen (benchmarks/fuzz.py).

        Args:
            a: Weights of the queries, ``(…, N)``.
            b: Weights of the atoms, ``(…, M)``.
            f: Potential at the queries in units of τ.
            g: Potential at the atoms.
        """
        frame = self.frame
        a, b, f, g = (z.reshape(len(frame.x), -1) for z in (a, b, f, g))
        rows = a.log() + f + frame.row
        columns = b.log() + g + frame.col
        cost = _mean(b, columns) + _mean(a, f + frame.row) + math.log(b.shape[-1])
        spread = rows.amax(-1) - _mean(a, rows) + columns.amax(-1) - _mean(b, columns)
        x, y = (z.detach().double().square().sum(-1) for z in (frame.x, frame.y))
        squares = _mean(a, x) + _mean(b, y)
        cost = cost.clamp_min(0)
        terms = (
            cost + spread + (2 * cost * squares).sqrt() + max(a.shape[-1], b.shape[-1]) ** 0.5 / 4
        )
        return (self.eps * (8 + terms) + self._omitted(squares)).reshape(self.batch)

    def _omitted(self, squares: Tensor) -> Tensor | float:
        """What an engine leaves out of a log-mass beside roundings, by its points' mean squares."""
        return 0.0

    @final
    @within_memory
    @in_full_precision
    def log_mass(self, bias: Tensor, guess: Tensor | None = None) -> Tensor:
        """Log-mass ℓ_i = log Σ_j exp(bias_j − C_ij/τ).

        Args:
            bias: ``(…, M)``.
            guess: A guess of the result, ``(…, N)``. Within a few tens of it, a plain sum of
                exponentials replaces the running maximum; the answer is the same.

        Returns:
            ``(…, N)``, float64.
        """
        found = self._defined(self._log_sum(self._full(bias), self._near(guess)))
        return (self.frame.row + found).reshape(*self.batch, -1)

    @final
    @within_memory
    @in_full_precision
    def barycentre(
        self, bias: Tensor, values: Tensor | None = None, guess: Tensor | None = None
    ) -> Tensor:
        """Barycentre T_i = Σ_j softmax_j(bias_j − C_ij/τ) · w_j.

        Args:
            bias: ``(…, M)``.
            values: One vector w_j an atom, ``(…, M, v)``; the atoms themselves by default.
            guess: A guess of the log-mass, as in `log_mass`.

        Returns:
            ``(…, N, v)`` in the dtype of the points; 0 for a query without atoms.
        """
        flat = values
        if flat is not None:
            flat = flat.reshape(len(self.frame.y), -1, flat.shape[-1]).to(self.frame.y.dtype)
        elif self.frame.y_own is not None:
            flat = self.frame.values
        mean = self._defined(self._average(self._full(bias), flat, self._near(guess)))
        if values is None:
            mean = self.frame.atoms(mean)
        return self._without_empty(mean, bias)

    @final
    @within_memory
    @in_full_precision
    def mean_cost_gradient(self, bias: Tensor, guess: Tensor | None = None) -> Tensor:
        """Mean gradient Σ_j softmax_j ∇_x C(x_i, y_j) = −τ ∇ℓ(x_i), ``(…, N, d)``.

        Args:
            bias: ``(…, M)``.
            guess: A guess of the log-mass, as in `log_mass`.
        """
        frame, full = self.frame, self._full(bias)
        if frame.cost.curvature is not None:
            mean = self._average(full, None, self._near(guess)) / frame.scale.to(frame.y.dtype)
            away = self.queries().reshape(frame.x.shape) - (frame.y_origin + mean)
            return self._without_empty(frame.lowered(frame.cost.curvature * away), bias)
        # Where 1/τ or τ is so large that its product with a slope may leave single precision.
        steep = bool(((frame.rate > STEEP) | (frame.rate < 1 / STEEP)).any())
        slopes = None if frame.x.requires_grad or steep else self._slopes(full, self._near(guess))
        if slopes is None:
            slopes = self._slopes_of_log_sum(full, torch.float64 if steep else frame.x.dtype)
        return self._without_empty(frame.lowered(slopes.to(frame.x.dtype)), bias)

    def _slopes(self, bias: Tensor, guess: Tensor | None) -> Tensor | None:
        """Σ_j softmax_j ∇C in working queries, ``(B, N, d)``; None where no formula is known."""
        return None

    def _slopes_of_log_sum(self, bias: Tensor, dtype: torch.dtype) -> Tensor:
        """The same for any cost: its log-sum knows its own slope."""
        frame, graph = self.frame, self.frame.x.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            # Copies, because tensors made in inference mode cannot enter a graph.
            x = frame.x.to(dtype) if graph else frame.x.to(dtype, copy=True).requires_grad_()
            y, rate = frame.y.to(dtype, copy=True), (1 / frame.tau).to(dtype)
            kernel = self.engine.kernel(replace(frame, x=x, y=y, rate=rate), self.batch)
            mass = kernel._log_sum(bias.clone(), None)
            (slope,) = torch.autograd.grad(mass.sum(), x, create_graph=graph)
        return -frame.tau.to(slope.dtype) * slope

    @final
    @within_memory
    @in_full_precision
    def coupling(
        self,
        bias: Tensor,
        shift: Tensor,
        *,
        columns: Tensor,
        missing: Tensor,
        floor: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Mass and barycentre of the rows A_ij = exp(bias_j − shift_i − C_ij/τ), unnormalised.

        Args:
            bias: ``(…, M)``; column sums c_j are part of it as −½ log c_j.
            shift: ``(…, N)``, such that no A is above 1: what roundings bring above is cut.
            columns: log c_j, ``(…, M)``.
            missing: How much of its own kernel values a query adds to the columns, ``(…, N)``.
            floor: The least a pair may have, ``(…, 1)``; an excluded pair has 0.

        With a graph they are formed in float64: the quotients of a backward pass by masses that are
        small would leave single precision.
        """
        frame = self.frame
        if frame.x.requires_grad and frame.x.dtype != torch.float64:
            exact = self.engine.kernel(frame.to(torch.float64), self.batch)
            mass, mean = exact.coupling(bias, shift, columns=columns, missing=missing, floor=floor)
            return mass, mean.to(frame.x.dtype)
        dtype, shift = frame.y.dtype, shift.reshape(frame.row.shape)
        own: tuple[Tensor, Tensor] | None = None
        if bool((missing > 0).any()):
            s = shift + missing.reshape(shift.shape).log()
            t = -(bias + columns).masked_fill(torch.isneginf(bias), 0).reshape(frame.col.shape)
            own = (s.to(dtype), t.to(dtype))
        bias, top = split(self._full(bias), dtype)
        guess = (shift - frame.row - top).to(dtype)
        values = torch.cat([torch.ones_like(frame.y[..., :1]), frame.values], -1)
        values = values * torch.isfinite(bias)[..., None]  # the floor must not revive an atom
        least = floor.reshape(-1, 1, 1).to(dtype) if isinstance(floor, Tensor) else None
        total = self._coupling_sum(bias, guess, values, least, own)
        if frame.x.requires_grad:  # a row whose pairs have vanished has no slope
            vanished = total[..., :1] < torch.finfo(dtype).tiny ** 0.5
            total = torch.where(vanished, total.detach(), total)
        mass = total[..., :1]
        mean = frame.atoms(total[..., 1:] / mass.clamp_min(torch.finfo(mass.dtype).tiny))
        mean = mean.reshape(*self.batch, *mean.shape[-2:])
        return mass[..., 0].double().reshape(*self.batch, -1), mean

    def queries(self) -> Tensor:
        """The queries in the coordinates of their cloud, ``(…, N, d)``."""
        frame = self.frame
        x = frame.x_origin + frame.x / frame.scale.to(frame.x.dtype)
        return x.reshape(*self.batch, *x.shape[-2:])

    def empty_rows(self, bias: Tensor) -> Tensor | None:
        """Queries whose only atom is themselves, masked: ``(…, N)``, or None if there are none."""
        if not self.frame.mask_self:
            return None
        alive = torch.isfinite(bias)
        n, m = self.frame.x.shape[-2], alive.shape[-1]
        # Atom i is query i where both exist.
        own = torch.nn.functional.pad(alive, (0, n - m)) if n > m else alive[..., :n]
        empty = alive.sum(-1, keepdim=True) - own.long() <= 0
        return empty if bool(empty.any()) else None

    # Helpers.

    def _defined(self, found: Tensor) -> Tensor:
        """What was found, unless a user's expression is NaN somewhere.

        Raises:
            CostError: It is.
        """
        cost = self.frame.cost
        if not cost.by_distance and bool(torch.isnan(found).any()):
            raise CostError("cost", f"'{cost.name}', which is NaN at some pairs", "finite values")
        return found

    def _full(self, bias: Tensor) -> Tensor:
        """The bias with the atoms' linear term, float64 ``(B, M)``."""
        return bias.detach().double().reshape(self.frame.col.shape) + self.frame.col

    def _near(self, guess: Tensor | None) -> Tensor | None:
        """A guess of the sum in working coordinates, ``(B, N)``; None where a graph is wanted."""
        if guess is None or self.frame.x.requires_grad:
            return None
        return guess.reshape(self.frame.row.shape) - self.frame.row

    def _without_empty(self, vectors: Tensor, bias: Tensor) -> Tensor:
        """``(B, N, v)`` with the batch axes, 0 for queries without atoms."""
        vectors = vectors.reshape(*self.batch, *vectors.shape[-2:])
        empty = self.empty_rows(bias)
        return vectors if empty is None else vectors.masked_fill(empty[..., None], 0)


def _mean(weights: Tensor, values: Tensor) -> Tensor:
    return torch.where(weights > 0, weights * values, 0.0).sum(-1)


def split(bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A float64 bias less its maximum, in a working dtype, and the maximum ``(B, 1)``."""
    top = bias.amax(-1, keepdim=True).clamp_min(torch.finfo(bias.dtype).min)
    return (bias - top).to(dtype), top
