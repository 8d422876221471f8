"""KeOps engine: the verbs as symbolic reductions over LazyTensors. Linear memory, low d, GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from keodrift.reductions.engines.keops import compiler
from keodrift.reductions.engines.pairs import PairKernel
from keodrift.reductions.engines.tiled import Tiled, TiledKernel
from keodrift.reductions.frame import Frame
from keodrift.reductions.kernel import Engine, GibbsKernel

# Stands for −inf inside formulas: exp of it is 0, and differences of it stay finite.
NEVER = -1e30
# Up to this d, one scalar variable a coordinate lets the compiler vectorise the loop over atoms.
SCALAR_COORDINATES = 32
# Longer values ride better in a matrix product: the loop over them stops the vectorisation.
VECTOR_VALUES = 4
# From so many pairs on, a first guess from so many atoms makes room for a plain sum.
ROUGH_PAIRS, ROUGH_ATOMS = 1 << 23, 512


@dataclass(frozen=True)
class Keops(Engine):
    """Compiles symbolic reductions."""

    name = "keops"
    compiles = True

    def kernel(self, frame: Frame, batch: tuple[int, ...]) -> GibbsKernel:
        """The kernel; a formula compiles when it is first used."""
        if frame.x.shape[1] == frame.y.shape[1] == 1:
            # KeOps takes arrays of one row on either side for parameters, and drops their batch.
            return Tiled().kernel(frame, batch)
        return KeopsKernel(self, frame, batch)


class KeopsKernel(PairKernel):
    """Symbolic ``bias_j − c_ij``; formulas compile on first use, once per d and dtype."""

    def _stable_log_sum(self, bias: Tensor) -> Tensor:
        guess = self._rough_log_sum(bias)
        if guess is not None:
            found = self._sum_about(bias, 0.0, guess, None)
            if found is not None:
                return found[0]
            if not bias.is_cuda:  # where a running maximum stops the compiler from vectorising
                return self._tiled._stable_log_sum(bias)

        def run() -> Tensor:
            logits = self._logits(bias)
            return logits.logsumexp(dim=logits.dim() - 2, backend=self._device)[..., 0]

        out = self._run("log_sum", run)
        if out is None:
            return self._tiled._stable_log_sum(bias)
        out = out.reshape(self.frame.x.shape[:-1]).double()
        return out.masked_fill(out.detach() < NEVER / 2, -torch.inf)

    def _stable_average(self, bias: Tensor, values: Tensor) -> Tensor:
        guess = self._rough_log_sum(bias)
        if guess is not None:
            found = self._sum_about(bias, 0.0, guess, values)
            if found is not None:
                return found[1]
            if not bias.is_cuda:
                return self._tiled._stable_average(bias, values)

        def run() -> Tensor:
            logits = self._logits(bias)
            weights = self._symbol(values, 1)
            return logits.sumsoftmaxweight(weights, dim=logits.dim() - 2, backend=self._device)

        out = self._run(("average", values.shape[-1]), run)
        if out is None:
            return self._tiled._stable_average(bias, values)
        return out.reshape(*self.frame.x.shape[:-1], values.shape[-1])

    def _plain_sum(self, bias: Tensor, shift: Tensor, values: Tensor | None = None) -> Tensor:
        frame = self.frame
        if not frame.quadratic:
            return self._tiled._plain_sum(bias, shift, values)
        d, v = frame.x.shape[-1], 0 if values is None else values.shape[-1]
        if v > VECTOR_VALUES and not bias.is_cuda:
            return self._tiled._plain_sum(bias, shift, values)
        scalar = d <= SCALAR_COORDINATES

        def run() -> Tensor:
            formula = _plain_formula(d, v, scalar, frame.mask_self, bias.dtype == torch.float32)
            rows = []
            for b in range(len(bias)):
                x, y = self._points
                arguments = [*_variables(x[b].detach(), scalar), *_variables(y[b], scalar)]
                arguments += [-shift[b, :, None], bias[b, :, None].clamp_min(NEVER)]
                if values is not None:
                    arguments.append(values[b].contiguous())
                if frame.mask_self:
                    arguments += [_index(x[b]), _index(y[b])]
                rows.append(formula(*arguments, backend=self._device))
            return torch.stack(rows)

        # The flags are for CPU compilers; a GPU vectorises by itself.
        out = self._run(("plain", v), run, fast=not bias.is_cuda)
        return self._tiled._plain_sum(bias, shift, values) if out is None else out

    def _omitted(self, squares: Tensor) -> Tensor | float:
        # Exponents are rounded beside 63 (see `_plain_formula`), half a digit of 64.
        single = self.frame.y.dtype == torch.float32
        return 16 * self.eps if single and self.frame.quadratic else 0.0

    def _coupling_sum(self, *arguments: Any) -> Tensor:
        return self._tiled._coupling_sum(*arguments)

    def _rough_log_sum(self, bias: Tensor) -> Tensor | None:
        """A guess of the log-sum from a few atoms, where a plain sum about it is worth trying."""
        frame = self.frame
        n, m = frame.x.shape[1], frame.y.shape[1]
        if frame.x.requires_grad or not frame.quadratic:
            return None
        if n * m < ROUGH_PAIRS or m < ROUGH_ATOMS:
            return None
        stride = m // ROUGH_ATOMS
        few = replace(
            frame, y=frame.y[:, ::stride].contiguous(), col=frame.col[:, ::stride], mask_self=False
        )
        some = bias[:, ::stride].contiguous()
        rough = Tiled().kernel(few, self.batch)._stable_log_sum(some)
        return (rough + math.log(stride)).to(bias.dtype)

    # Symbols.

    @property
    def _device(self) -> str:
        # Named, because KeOps would otherwise send CPU tensors to a GPU.
        return "GPU" if self.frame.y.is_cuda else "CPU"

    @cached_property
    def _tiled(self) -> TiledKernel:
        return Tiled().kernel(self.frame, self.batch)

    @cached_property
    def _points(self) -> tuple[Tensor, Tensor]:
        """Points scaled so that a quadratic cost is ‖x − y‖², which spares a product a pair."""
        frame = self.frame
        factor = 0.5**0.5 if frame.quadratic else 1.0
        return (frame.x * factor).contiguous(), (frame.y * factor).contiguous()

    def _symbol(self, array: Tensor, axis: int) -> Any:
        """``(B, K, v)`` as a LazyTensor over queries (axis 0) or atoms (axis 1)."""
        array = array.contiguous()
        array = array.squeeze(0) if len(array) == 1 else array
        return compiler.load().LazyTensor(array.unsqueeze(-2 if axis == 0 else -3))

    def _logits(self, bias: Tensor) -> Any:
        frame = self.frame
        x, y = (self._symbol(points, axis) for axis, points in enumerate(self._points))
        if frame.quadratic:
            cost = x.sqdist(y)
        else:
            radial = frame.cost.radial
            cost = frame.cost.expression(x, y) if radial is None else radial(x.sqdist(y).sqrt())
            # A variable, not a number: numbers become parameters that live on the CPU.
            cost = cost * self._symbol(frame.rate.expand(-1, frame.y.shape[1], 1), 1)
        logits = self._symbol(bias.clamp_min(NEVER)[..., None], 1) - cost
        if not frame.mask_self:
            return logits
        i, j = (
            self._symbol(_index(points).expand(len(points), -1, 1), axis)
            for axis, points in enumerate((frame.x, frame.y))
        )
        return ((i - j).square() - 0.5).ifelse(logits, 0 * logits + NEVER)

    def _run(
        self, verb: object, call: Callable[[], Tensor], *, fast: bool = False
    ) -> Tensor | None:
        """The result of a KeOps call, or None where KeOps cannot compile it."""
        frame = self.frame
        parts = (verb, frame.x.shape[-1], frame.y.dtype, frame.mask_self, self._device)
        name, device = f"{parts} {frame.cost.name}", frame.y.device.type
        # A compiler that does not know the flags for fast sums may still do without them.
        for quick in (True, False) if fast and compiler.fast_flags_work() else (False,):
            if compiler.failure(device) is not None or (name, frame.cost) in compiler.failed:
                return None
            try:
                with compiler.session(name, frame.cost, fast=quick):
                    return call()
            except torch.OutOfMemoryError:
                raise
            except (Exception, SystemExit) as error:  # a user's cost may raise anything
                compiler.report_failure(error, (name, frame.cost), frame.cost, device, fast=quick)
        return None


def _variables(points: Tensor, scalar: bool) -> list[Tensor]:
    """One variable a coordinate, or the points as one."""
    return [c.contiguous() for c in points.split(1, -1)] if scalar else [points]


def _index(points: Tensor) -> Tensor:
    """0, 1, 2, … along a cloud, as a column; exact in float32 up to 2²⁴ points."""
    return torch.arange(points.shape[-2], dtype=points.dtype, device=points.device)[:, None]


@cache
def _plain_formula(d: int, v: int, scalar: bool, masked: bool, single: bool) -> Any:
    """Σ_j exp(shift_i + bias_j − ‖x_i − y_j‖²) values_j; without values (v = 0), the mass alone."""
    if scalar:
        names = [f"X{k}=Vi(1)" for k in range(d)] + [f"Y{k}=Vj(1)" for k in range(d)]
        square = "+".join(f"Square(X{k}-Y{k})" for k in range(d))
    else:
        names, square = [f"X=Vi({d})", f"Y=Vj({d})"], "SqDist(X,Y)"
    names += ["S=Vi(1)", "B=Vj(1)"]
    exponent = f"S+B-({square})"
    if single:
        # Denormal results would cost more than all the others, so exponents stop at −63: exp of it
        # is lost beside any sum that is accepted, and adding 63 rounds half as much as 64 would.
        exponent = f"ReLU({exponent}+IntCst(63))-IntCst(63)"
    weight = f"Exp({exponent})"
    if v > 0:
        names.append(f"W=Vj({v})")
    if masked:
        names += ["I=Vi(1)", "J=Vj(1)"]
        weight = f"{weight}*Step(Square(I-J)-IntInv(2))"
    if v > 0:
        weight += "*W"
    return compiler.genred(weight, names, reduction_op="Sum", axis=1, sum_scheme="direct_sum")
