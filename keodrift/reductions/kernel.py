"""The two verbs on a Gibbs kernel exp(−C/τ) that is never stored: log-mass and barycentre.

Whatever the points' dtype, vectors with one number a point (biases, log-masses, potentials) are
float64: they cost O(N), and their differences decide the coupling. The N×M arithmetic runs in the
dtype of the points, in its full precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from keodrift.reductions.frame import Frame
from keodrift.reductions.precision import in_full_precision


class GibbsKernel(ABC):
    """Pairs of queries x and atoms y under exp(−C/τ); one subclass an engine.

    Both verbs weight the atoms by ``exp(bias_j)``, where ``bias_j = log b_j + g_j/τ`` holds a
    weight and a potential; ``-inf`` removes an atom. They are differentiable in the queries.
    """

    engine: str

    def __init__(self, frame: Frame, batch: tuple[int, ...]) -> None:
        self.frame, self.batch = frame, batch

    # The engine's part, in working coordinates and working dtype, on (B, …) arrays.

    @abstractmethod
    def _log_sum(self, bias: Tensor) -> Tensor:
        """``log Σ_j exp(bias_j − c_ij)``, ``(B, N)``; ``-inf`` for a row without atoms."""

    @abstractmethod
    def _average(self, bias: Tensor, values: Tensor) -> Tensor:
        """``Σ_j softmax_j(bias_j − c_ij) values_j``, ``(B, N, v)``; any value without atoms."""

    @abstractmethod
    def _plain_sum(self, bias: Tensor, shift: Tensor, values: Tensor | None = None) -> Tensor:
        """``Σ_j exp(bias_j − shift_i − c_ij) values_j``, ``(B, N, v)``, no graph.

        Without values they are 1 and v = 1.
        """

    @abstractmethod
    def _floored_sum(self, bias: Tensor, shift: Tensor, values: Tensor, floor: float) -> Tensor:
        """``Σ_j max(exp(bias_j − shift_i − c_ij), floor) values_j``, ``(B, N, v)``."""

    # What users of a kernel call.

    @cached_property
    def T(self) -> GibbsKernel:
        """The transposed kernel: queries y, atoms x."""
        return type(self)(self.frame.transposed(), self.batch)

    @in_full_precision
    def log_mass(self, bias: Tensor, shift: Tensor | None = None) -> Tensor:
        """Log-mass ℓ_i = log Σ_j exp(bias_j − C_ij/τ).

        Args:
            bias: ``(…, M)``.
            shift: A guess of the result, ``(…, N)``. Within a few tens of it, a plain sum of
                exponentials replaces the running maximum; the answer is the same.

        Returns:
            ``(…, N)``, float64.
        """
        if shift is not None and not self.frame.x.requires_grad:
            found = self._about(bias, shift, None)
            if found is not None:
                return found[0].reshape(*self.batch, -1)
        bias, top = self._working(bias)
        return (self.frame.row + top + self._log_sum(bias)).reshape(*self.batch, -1)

    @in_full_precision
    def barycentre(
        self, bias: Tensor, values: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Barycentre T_i = Σ_j softmax_j(bias_j − C_ij/τ) · w_j.

        Args:
            bias: ``(…, M)``.
            values: One vector w_j an atom, ``(…, M, v)``; the atoms themselves by default.
            shift: A guess of the log-mass, as in `log_mass`.

        Returns:
            ``(…, N, v)`` in the dtype of the points; 0 for a query without atoms.
        """
        empty = self.empty_rows(bias)
        atoms = self.frame.y
        flat = atoms if values is None else values.reshape(len(atoms), -1, values.shape[-1])
        flat, mean = flat.to(atoms.dtype), None
        if shift is not None and not self.frame.x.requires_grad:
            found = self._about(bias, shift, flat)
            mean = None if found is None else found[1]
        if mean is None:
            mean = self._average(self._working(bias)[0], flat)
        if values is None:
            mean = self.frame.atoms(mean)
        mean = mean.reshape(*self.batch, *mean.shape[-2:])
        return mean if empty is None else mean.masked_fill(empty[..., None], 0)

    @in_full_precision
    def mean_cost_gradient(self, bias: Tensor) -> Tensor:
        """Mean gradient Σ_j softmax_j ∇_x C(x_i, y_j) = −τ ∇ℓ(x_i), ``(…, N, d)``."""
        frame = self.frame
        if frame.cost.form == "quadratic":
            pull = self.barycentre(bias) - self.queries()
            empty = self.empty_rows(bias)
            if empty is not None:
                pull = pull.masked_fill(empty[..., None], 0)
            return -frame.cost.factor * pull
        # The log-mass of any cost knows its own gradient: one reduction more, no new formula.
        graph = frame.x.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            kernel, weights = self, self._working(bias)[0]
            if not graph:
                # Copies, because tensors made in inference mode cannot enter a graph.
                x = frame.x.clone().requires_grad_()
                kernel = type(self)(replace(frame, x=x, y=frame.y.clone()), self.batch)
                weights = weights.clone()
            x = kernel.frame.x
            mass = kernel._log_sum(weights)
            (slope,) = torch.autograd.grad(mass.sum(), x, create_graph=graph)
        slope = slope.reshape(*self.batch, *slope.shape[-2:])
        empty = self.empty_rows(bias)
        if empty is not None:
            slope = slope.masked_fill(empty[..., None], 0)
        return -frame.tau * frame.scale * slope

    @in_full_precision
    def floored(self, bias: Tensor, shift: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        """Mass and barycentre of the coupling max(exp(bias_j − shift_i − C_ij/τ), floor)."""
        bias, top = self._working(bias)
        guess = (shift.reshape(self.frame.row.shape) - self.frame.row - top).to(bias.dtype)
        values = torch.cat([torch.ones_like(self.frame.y[..., :1]), self.frame.y], -1)
        values = values * torch.isfinite(bias)[..., None]  # the floor must not revive an atom
        total = self._floored_sum(bias, guess, values, floor)
        mass = total[..., :1]
        mean = self.frame.atoms(total[..., 1:] / mass.clamp_min(torch.finfo(mass.dtype).tiny))
        mean = mean.reshape(*self.batch, *mean.shape[-2:])
        return mass[..., 0].double().reshape(*self.batch, -1), mean

    def queries(self) -> Tensor:
        """The queries in the coordinates of their cloud, ``(…, N, d)``."""
        frame = self.frame
        x = frame.x_origin + frame.x / frame.scale
        return x.reshape(*self.batch, *x.shape[-2:])

    def empty_rows(self, bias: Tensor) -> Tensor | None:
        """Queries whose only atom is themselves, masked: ``(…, N)``, or None if there are none."""
        if not self.frame.mask_self:
            return None
        alive = torch.isfinite(bias)
        others = alive.sum(-1, keepdim=True) - _fit(alive, self.frame.x.shape[-2]).long()
        empty = others <= 0
        return empty if bool(empty.any()) else None

    # Helpers.

    def _working(self, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Folds the atoms' linear term into the bias and takes out its maximum, in float64."""
        col = self.frame.col
        full = bias.detach().double().reshape(col.shape) + col
        top = full.amax(-1, keepdim=True)
        return (full - top).to(self.frame.y.dtype), top

    def _about(
        self, bias: Tensor, shift: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Log-mass ``(B, N)`` and averages about a guess; None where the guess was too far."""
        bias, top = self._working(bias)
        row = self.frame.row + top
        guess = (shift.reshape(row.shape) - row).to(bias.dtype)
        if values is not None:
            values = torch.cat([torch.ones_like(values[..., :1]), values], -1)
        total = self._sum_about(bias, guess, values)
        if total is None:
            return None
        mass = row + guess.double() + total[..., 0].double().log()
        return mass, total[..., 1:] / total[..., :1]

    def _sum_about(
        self, bias: Tensor, guess: Tensor, values: Tensor | None = None
    ) -> Tensor | None:
        """Plain sums about a guess of the log-mass; None where the guess was too far."""
        total = self._plain_sum(bias, guess, values)
        # Beyond these bounds single terms may have overflowed, or underflowed to denormals.
        mass, edge = total[..., 0], torch.finfo(total.dtype).max ** (1 / 3)
        return total if bool(((mass < edge) & (mass > 1 / edge)).all()) else None


def _fit(flags: Tensor, length: int) -> Tensor:
    """Cuts or pads flags ``(…, M)`` to ``(…, length)``: atom i is query i where both exist."""
    missing = length - flags.shape[-1]
    return torch.nn.functional.pad(flags, (0, missing)) if missing > 0 else flags[..., :length]
