"""KeOps engine: the verbs as symbolic reductions over LazyTensors. Linear memory, low d, GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from keodrift.errors import is_short
from keodrift.reductions.engines.keops import compiler
from keodrift.reductions.engines.keops.device import on_keops_stream
from keodrift.reductions.engines.keops.formulas import (
    NEVER,
    SCALAR_VALUES,
    Written,
    concatenated,
    index,
    plain_sum,
    scaled,
    stable_sum,
    variables,
    written,
)
from keodrift.reductions.engines.pairs import PairKernel, trusted
from keodrift.reductions.engines.tiled import Tiled, TiledKernel
from keodrift.reductions.frame import Frame
from keodrift.reductions.kernel import Engine, GibbsKernel, split

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
        out = found[0] if found is not None else self._running_maximum(bias, None)
        if out is None:
            return self._tiled._stable_log_sum(bias)
        out = out.reshape(self.frame.x.shape[:-1]).double()
        return out.masked_fill(out.detach() < NEVER / 2, -torch.inf)

    def _stable_average(self, bias: Tensor, values: Tensor) -> Tensor:
        found = self._about_rough(bias, values)
        out = found[1] if found is not None else self._running_maximum(bias, values)
        if out is None:
            return self._tiled._stable_average(bias, values)
        return out.reshape(*self.frame.x.shape[:-1], values.shape[-1])

    def _running_maximum(self, bias: Tensor, values: Tensor | None) -> Tensor | None:
        """Log-sums or averages without a guess; None where blocks are faster, or KeOps cannot."""
        # A running maximum stops a CPU's compiler from vectorising: blocks are faster then, where
        # they are matrix products.
        by_distance, cost = self.frame.cost.by_distance, self._written
        if self._large and by_distance and not bias.is_cuda:
            return None
        width = 0 if values is None else values.shape[-1]
        if cost is not None and not by_distance:

            def run() -> Tensor:
                return self._reduced(stable_sum(cost, width), cost, bias, values=values)

            return self._run(("stable", width), run, cost=cost)

        def symbolic() -> Tensor:
            logits = self._logits(bias)
            how = {"dim": logits.dim() - 2, "backend": self._device}
            if values is None:
                return logits.logsumexp(**how)
            return logits.sumsoftmaxweight(self._symbol(values, 1), **how)

        return self._run(("stable", width), symbolic)

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
        cost, width = self._written, 0 if values is None else values.shape[-1]
        if cost is None:
            return self._symbolic_pass(bias, shift, values)
        apart = cost.scalar and not bias.is_cuda  # one variable a value
        names = tuple(f"W{k}=Vj(1)" for k in range(width)) if apart else (f"W=Vj({width})",)
        factor = concatenated([name.partition("=")[0] for name in names]) if width else ""

        def run() -> Tensor:
            formula = plain_sum(cost, factor, names if width else ())
            return self._reduced(formula, cost, bias, shift, values, apart)

        return self._run(("plain", width), run, cost=cost, fast=True)

    def _symbolic_pass(self, bias: Tensor, shift: Tensor, values: Tensor | None) -> Tensor | None:
        """The same of LazyTensors, which know more operations and vectorise none."""

        def run() -> Tensor:
            logits = self._logits(bias) - self._symbol(shift[..., None], 0)
            terms = logits.exp() if values is None else logits.exp() * self._symbol(values, 1)
            total = terms.sum(dim=logits.dim() - 2, backend=self._device)
            return total.reshape(*self.frame.x.shape[:-1], -1)

        return self._run(("symbolic", 0 if values is None else values.shape[-1]), run)

    def _slopes(self, bias: Tensor, guess: Tensor | None) -> Tensor | None:
        cost = self._written
        if cost is None or not cost.slopes:
            return None
        low, top = split(bias, self.frame.y.dtype)
        total = None
        if guess is not None:
            total = self._slope_sum(cost, low, (guess - top).to(low.dtype))
        if total is None or not trusted(total[..., 0]):
            mass = self._log_sum(bias, None)  # exact; of a row without atoms there is none
            shift = mass.masked_fill(torch.isneginf(mass), 0) - top
            total = self._slope_sum(cost, low, shift.to(low.dtype))
        if total is None:
            return None
        return total[..., 1:] / total[..., :1].clamp_min(torch.finfo(total.dtype).tiny)

    def _slope_sum(self, cost: Written, bias: Tensor, shift: Tensor) -> Tensor | None:
        """The mass and Σ_j exp(…) ∇C about a shift, ``(B, N, 1 + d)``."""
        parts, terms = [], ("IntCst(1)", *cost.slopes)
        for begin in range(0, len(terms), SCALAR_VALUES):
            factor = concatenated(terms[begin : begin + SCALAR_VALUES])

            def run(factor: str = factor) -> Tensor:
                return self._reduced(plain_sum(cost, factor, ()), cost, bias, shift)

            found = self._run(("slope", begin), run, cost=cost, fast=True)
            if found is None:
                return None
            parts.append(found)
        return torch.cat(parts, -1)

    def _reduced(
        self,
        formula: Any,
        cost: Written,
        bias: Tensor,
        shift: Tensor | None = None,
        values: Tensor | None = None,
        apart: bool = False,
    ) -> Tensor:
        """A formula of every problem, ``(B, N, v)``; with a shift it has no graph.

        Args:
            formula: What `plain_sum` or, without a shift, `stable_sum` makes of the cost.
            cost: The cost.
            bias: ``(B, M)``.
            shift: ``(B, N)``.
            values: ``(B, M, v)``.
            apart: One variable a value.
        """
        rows = []
        for b in range(len(bias)):
            x, y = (points[b] for points in self._points)
            x = x if shift is None else x.detach()
            arguments = [*variables(x, cost.scalar), *variables(y, cost.scalar)]
            arguments.append(bias[b, :, None].clamp_min(NEVER))
            arguments += [self._constants[b]] if cost.constants else []
            arguments += [index(x), index(y)] if cost.masked else []
            arguments += [] if shift is None else [-shift[b, :, None]]
            arguments += [] if values is None else variables(values[b], apart)
            rows.append(formula(*arguments, backend=self._device))
        return torch.stack(rows)

    def _omitted(self, squares: Tensor) -> Tensor | float:
        # Exponents are rounded beside 63 (see `plain_sum`), half a digit of 64.
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

    @cached_property
    def _cost(self) -> tuple[Written, Tensor] | None:
        return written(self.frame)

    @property
    def _written(self) -> Written | None:
        """The working cost as a formula; None where LazyTensors alone know it."""
        return None if self._cost is None else self._cost[0]

    @property
    def _constants(self) -> Tensor:
        """What P holds in each problem, ``(B, k)``."""
        return self.frame.rate[:, 0, :0] if self._cost is None else self._cost[1]

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
        return scaled(self.frame)

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
            self._symbol(index(points).expand(len(points), -1, 1), axis)
            for axis, points in enumerate((frame.x, frame.y))
        )
        return ((i - j).square() - 0.5).ifelse(logits, 0 * logits + NEVER)

    def _run(
        self,
        verb: object,
        call: Callable[[], Tensor],
        *,
        cost: Written | None = None,
        fast: bool = False,
    ) -> Tensor | None:
        """The result of a KeOps call, or None where KeOps cannot compile it.

        Args:
            verb: What is done.
            call: Does it.
            cost: The cost as a formula, where the call takes it so.
            fast: Compile with vectorised exponentials, on a CPU: a GPU vectorises by itself.
        """
        frame = self.frame
        parts = (verb, frame.x.shape[-1], frame.y.dtype, frame.mask_self, self._device)
        # What compiles to one file has one name, by which processes wait for each other.
        called = "quadratic" if frame.quadratic else frame.cost.name
        name, device = f"{parts} {called if cost is None else cost.value}", frame.y.device.type
        # Costs of one name may differ; what is written out says all there is.
        identity = None if cost is not None or frame.quadratic else frame.cost
        fast = fast and device == "cpu"
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
