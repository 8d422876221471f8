"""KeOps engine: the verbs as symbolic reductions over LazyTensors. Linear memory, low d, GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from keodrift.costs import squared
from keodrift.reductions.engines.keops import compiler
from keodrift.reductions.engines.keops.device import on_keops_stream
from keodrift.reductions.engines.keops.symbols import traced, traced_distance
from keodrift.reductions.engines.pairs import PairKernel
from keodrift.reductions.engines.tiled import Tiled, TiledKernel
from keodrift.reductions.frame import Frame
from keodrift.reductions.kernel import Engine, GibbsKernel, split
from keodrift.reductions.memory import is_short

# Stands for −inf inside formulas: exp of it is 0, and differences of it stay finite.
NEVER = -1e30
# Up to this d, one scalar variable a coordinate lets the compiler vectorise the loop over atoms;
# and of values as many at a time, so that it unrolls the loop over them (benchmarks/passes.py).
SCALAR_COORDINATES = 32
SCALAR_VALUES = 8
# Longer values ride better in a matrix product, where the engine of those has them for the cost.
PRODUCT_VALUES = 24
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
        found = self._about_rough(bias, None)
        if found is not None:
            return found[0]

        def run() -> Tensor:
            logits = self._logits(bias)
            return logits.logsumexp(dim=logits.dim() - 2, backend=self._device)[..., 0]

        # A running maximum stops a CPU's compiler from vectorising: blocks are faster then, where
        # they are matrix products.
        blocks = self._large and self.frame.cost.by_distance and not bias.is_cuda
        out = None if blocks else self._run("log_sum", run)
        if out is None:
            return self._tiled._stable_log_sum(bias)
        out = out.reshape(self.frame.x.shape[:-1]).double()
        return out.masked_fill(out.detach() < NEVER / 2, -torch.inf)

    def _stable_average(self, bias: Tensor, values: Tensor) -> Tensor:
        found = self._about_rough(bias, values)
        if found is not None:
            return found[1]

        def run() -> Tensor:
            logits = self._logits(bias)
            weights = self._symbol(values, 1)
            return logits.sumsoftmaxweight(weights, dim=logits.dim() - 2, backend=self._device)

        blocks = self._large and self.frame.cost.by_distance and not bias.is_cuda
        out = None if blocks else self._run(("average", values.shape[-1]), run)
        if out is None:
            return self._tiled._stable_average(bias, values)
        return out.reshape(*self.frame.x.shape[:-1], values.shape[-1])

    def _plain_sum(self, bias: Tensor, shift: Tensor, values: Tensor | None = None) -> Tensor:
        width = 0 if values is None else values.shape[-1]
        if self.frame.cost.by_distance and width > PRODUCT_VALUES and not bias.is_cuda:
            return self._tiled._plain_sum(bias, shift, values)
        # A GPU takes all values in one pass, as a vector.
        step = width if bias.is_cuda else SCALAR_VALUES
        parts = []
        for begin in range(0, max(width, 1), max(step, 1)):
            part = None if values is None else values[..., begin : begin + step]
            found = self._plain_pass(bias, shift, part)
            if found is None:
                return self._tiled._plain_sum(bias, shift, values)
            parts.append(found)
        return torch.cat(parts, -1)

    def _plain_pass(self, bias: Tensor, shift: Tensor, values: Tensor | None) -> Tensor | None:
        """The plain sum of a few values in one reduction; None where KeOps cannot."""
        written = self._written
        width = 0 if values is None else values.shape[-1]
        if written is None:
            return self._symbolic_pass(bias, shift, values)
        apart = written.scalar and not bias.is_cuda  # one variable a value
        names: tuple[str, ...] = ()
        factor = ""
        if apart:
            names = tuple(f"W{k}=Vj(1)" for k in range(width))
            factor = _concatenated([f"W{k}" for k in range(width)])
        elif width:
            names, factor = (f"W=Vj({width})",), "W"

        def run() -> Tensor:
            formula = _plain_formula(self._shape(written), written.value, factor, names)
            rows = []
            for b in range(len(bias)):
                arguments = self._arguments(b, written, bias, shift)
                if values is not None:
                    arguments += _variables(values[b], apart)
                rows.append(formula(*arguments, backend=self._device))
            return torch.stack(rows)

        return self._run(("plain", width), run, written=written.value)

    def _symbolic_pass(self, bias: Tensor, shift: Tensor, values: Tensor | None) -> Tensor | None:
        """The same of LazyTensors, which know more operations and vectorise none."""

        def run() -> Tensor:
            logits = self._logits(bias) - self._symbol(shift[..., None], 0)
            terms = logits.exp() if values is None else logits.exp() * self._symbol(values, 1)
            total = terms.sum(dim=logits.dim() - 2, backend=self._device)
            return total.reshape(*self.frame.x.shape[:-1], -1)

        return self._run(("symbolic", 0 if values is None else values.shape[-1]), run)

    def _slopes(self, bias: Tensor, guess: Tensor | None) -> Tensor | None:
        written = self._written
        if written is None or not written.slopes:
            return None
        mass = self._log_sum(bias, guess)  # exact, so that no sum about it is far off
        bias, top = split(bias, self.frame.y.dtype)
        shift = (mass.masked_fill(torch.isneginf(mass), 0) - top).to(bias.dtype)
        total = self._slope_sum(written, bias, shift)
        if total is None:
            return None
        return total[..., 1:] / total[..., :1].clamp_min(torch.finfo(total.dtype).tiny)

    def _slope_sum(self, written: _Written, bias: Tensor, shift: Tensor) -> Tensor | None:
        """The mass and Σ_j exp(…) ∇C about a shift, ``(B, N, 1 + d)``."""
        parts, terms = [], ("IntCst(1)", *written.slopes)
        for begin in range(0, len(terms), SCALAR_VALUES):
            factor = _concatenated(terms[begin : begin + SCALAR_VALUES])

            def run(factor: str = factor) -> Tensor:
                formula = _plain_formula(self._shape(written), written.value, factor, ())
                rows = [self._arguments(b, written, bias, shift) for b in range(len(bias))]
                return torch.stack([formula(*row, backend=self._device) for row in rows])

            found = self._run(("slope", begin), run, written=written.value)
            if found is None:
                return None
            parts.append(found)
        return torch.cat(parts, -1)

    def _arguments(self, b: int, written: _Written, bias: Tensor, shift: Tensor) -> list[Tensor]:
        """What `_plain_formula` takes of one problem, values apart."""
        x, y = (points[b].detach() for points in self._points)
        arguments = [*_variables(x, written.scalar), *_variables(y, written.scalar)]
        arguments += [-shift[b, :, None], bias[b, :, None].clamp_min(NEVER)]
        arguments += [written.constants[b]] if written.constants.numel() else []
        return [*arguments, *([_index(x), _index(y)] if self.frame.mask_self else [])]

    @cached_property
    def _written(self) -> _Written | None:
        """The working cost as a formula; None where LazyTensors alone know it."""
        frame, rates = self.frame, self.frame.rate.detach()[:, 0]
        d, scalar = frame.x.shape[-1], frame.x.shape[-1] <= SCALAR_COORDINATES
        if frame.quadratic:  # the points are scaled
            value = traced(squared, d).value if scalar else "SqDist(X,Y)"
            return _Written(value, (), rates[:, :0], scalar)
        try:
            found = traced(frame.cost, d) if scalar else traced_distance(frame.cost)
        except Exception:  # a user's cost may raise anything
            return None
        constants = rates.new_tensor(found.constants).expand(len(rates), -1)
        value = f"Elem(P,{len(found.constants)})*({found.value})"
        return _Written(value, found.slopes, torch.cat([constants, rates], 1), scalar)

    def _omitted(self, squares: Tensor) -> Tensor | float:
        # Exponents are rounded beside 63 (see `_plain_formula`), half a digit of 64.
        return 16 * self.eps if self.frame.y.dtype == torch.float32 else 0.0

    def _coupling_sum(self, *arguments: Any) -> Tensor:
        return self._tiled._coupling_sum(*arguments)

    @property
    def _large(self) -> bool:
        """Whether a rough guess of the log-sum is cheap beside a pass."""
        n, m = self.frame.x.shape[1], self.frame.y.shape[1]
        return not self.frame.x.requires_grad and n * m >= ROUGH_PAIRS and m >= ROUGH_ATOMS

    def _about_rough(self, bias: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Log-sum and averages about a guess from a few atoms; None where that is not near."""
        if not self._large:
            return None
        frame, stride = self.frame, self.frame.y.shape[1] // ROUGH_ATOMS
        few = replace(
            frame, y=frame.y[:, ::stride].contiguous(), col=frame.col[:, ::stride], mask_self=False
        )
        some = bias[:, ::stride].contiguous()
        rough = Tiled().kernel(few, self.batch)._stable_log_sum(some)
        guess = (rough + math.log(stride)).to(bias.dtype)
        found = self._sum_about(bias, 0.0, guess, values)
        if found is None:
            # Beside the nearest atom the few may be far: a pass more knows how far.
            mass = self._plain_sum(bias, guess)[..., 0]
            if bool(((mass > 0) & torch.isfinite(mass)).all()):
                found = self._sum_about(bias, 0.0, guess + mass.log(), values)
        return found

    # Symbols.

    def _shape(self, written: _Written) -> _Shape:
        d, single = self.frame.x.shape[-1], self.frame.y.dtype == torch.float32
        constants = written.constants.shape[-1]
        return _Shape(d, written.scalar, constants, self.frame.mask_self, single)

    def _constant(self, value: Tensor) -> Any:
        """A tensor of a cost as a parameter of LazyTensors."""
        return compiler.load().LazyTensor(value.to(self.frame.y).reshape(1, 1, -1))

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
            if radial is None:
                given = frame.cost.parameters.items()
                constants = {name: self._constant(value) for name, value in given}
                cost = frame.cost.expression(x, y, **constants)
            else:
                cost = radial(x.sqdist(y).sqrt())
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
        self, verb: object, call: Callable[[], Tensor], *, written: str | None = None
    ) -> Tensor | None:
        """The result of a KeOps call, or None where KeOps cannot compile it.

        Args:
            verb: What is done.
            call: Does it.
            written: The formula of the cost, where the call takes that in the place of the cost.
        """
        frame = self.frame
        parts = (verb, frame.x.shape[-1], frame.y.dtype, frame.mask_self, self._device)
        # What compiles to one file has one name, by which processes wait for each other.
        cost = written or ("quadratic" if frame.quadratic else frame.cost.name)
        name, device = f"{parts} {cost}", frame.y.device.type
        # Costs of one name may differ; what is written out says all there is.
        identity = None if written is not None or frame.quadratic else frame.cost
        # The flags are for CPU compilers; a GPU vectorises by itself.
        fast = written is not None and device == "cpu"
        # A compiler that does not know the flags for fast sums may still do without them.
        for quick in (True, False) if fast and compiler.fast_flags_work() else (False,):
            if compiler.failure(device) is not None or (name, identity) in compiler.failed:
                return None
            try:
                with compiler.session(name, identity, fast=quick):
                    return on_keops_stream(call, frame.y.device)
            except (Exception, SystemExit) as error:  # a user's cost may raise anything
                if is_short(error):
                    raise
                compiler.report_failure(error, (name, identity), frame.cost, device, fast=quick)
        return None


@dataclass(frozen=True)
class _Written:
    """A working cost as a formula; see `Traced`.

    Attributes:
        value: The cost.
        slopes: Its slopes in the coordinates of x; none where points are vectors.
        constants: What P holds in each problem, ``(B, k)``.
        scalar: Whether every coordinate is a variable.
    """

    value: str
    slopes: tuple[str, ...]
    constants: Tensor
    scalar: bool


@dataclass(frozen=True)
class _Shape:
    """What else a plain formula depends on."""

    d: int
    scalar: bool
    constants: int
    masked: bool
    single: bool


def _concatenated(terms: Sequence[str]) -> str:
    """Numbers as one vector; nothing for none."""
    return reduce(lambda one, other: f"Concat({one},{other})", terms or [""])


def _variables(points: Tensor, scalar: bool) -> list[Tensor]:
    """One variable a coordinate, or the points as one."""
    return [c.contiguous() for c in (points.split(1, -1) if scalar else [points])]


def _index(points: Tensor) -> Tensor:
    """0, 1, 2, … along a cloud, as a column; exact in float32 up to 2²⁴ points."""
    return torch.arange(points.shape[-2], dtype=points.dtype, device=points.device)[:, None]


@cache
def _plain_formula(shape: _Shape, cost: str, factor: str, names: tuple[str, ...]) -> Any:
    """Σ_j exp(shift_i + bias_j − c_ij) factor_ij; without a factor, the mass alone.

    Args:
        shape: How points come, and what is excluded.
        cost: c, a formula.
        factor: A formula, or nothing.
        names: Variables of the factor.
    """
    if shape.scalar:
        own = [f"X{k}=Vi(1)" for k in range(shape.d)] + [f"Y{k}=Vj(1)" for k in range(shape.d)]
    else:
        own = [f"X=Vi({shape.d})", f"Y=Vj({shape.d})"]
    own += ["S=Vi(1)", "B=Vj(1)", *([f"P=Pm({shape.constants})"] if shape.constants else [])]
    exponent = f"S+B-({cost})"
    if shape.single:
        # Denormal results would cost more than all the others, so exponents stop at −63: exp of it
        # is lost beside any sum that is accepted, and adding 63 rounds half as much as 64 would.
        exponent = f"ReLU({exponent}+IntCst(63))-IntCst(63)"
    weight = f"Exp({exponent})"
    if shape.masked:
        own += ["I=Vi(1)", "J=Vj(1)"]
        weight = f"{weight}*Step(Square(I-J)-IntInv(2))"
    if factor:
        weight += f"*({factor})"
    return compiler.genred(
        weight, [*own, *names], reduction_op="Sum", axis=1, sum_scheme="direct_sum"
    )
