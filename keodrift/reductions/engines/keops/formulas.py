"""KeOps formulas of sums over atoms, whose costs are written out (`symbols`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

from keodrift.costs import squared
from keodrift.reductions.engines.keops import compiler
from keodrift.reductions.engines.keops.symbols import traced, traced_distance
from keodrift.reductions.frame import Frame

# Stands for −inf inside formulas: exp of it is 0, and differences of it stay finite.
NEVER = -1e30
_NEVER = "*".join(["(-IntCst(1000))", *["IntCst(1000000000)"] * 3])
# Up to this d, one scalar variable a coordinate lets the compiler vectorise the loop over atoms;
# and of values as many at a time, so that it unrolls the loop over them (benchmarks/passes.py).
SCALAR_COORDINATES = 32
SCALAR_VALUES = 8


@dataclass(frozen=True)
class Written:
    """A working cost as a formula of X, Y and constants P, and what sums of it depend on.

    Attributes:
        value: The cost c.
        slopes: Slopes of C in the coordinates of x; none where points are vectors.
        d: Dimension of the points.
        scalar: Whether every coordinate is a variable, X0, X1, …
        constants: How many numbers P holds.
        masked: Whether pairs i = j are excluded.
        single: Whether numbers are float32.
    """

    value: str
    slopes: tuple[str, ...]
    d: int
    scalar: bool
    constants: int
    masked: bool
    single: bool

    @property
    def names(self) -> list[str]:
        """Variables of every sum: points, biases, constants, indices."""
        if self.scalar:
            own = [f"X{k}=Vi(1)" for k in range(self.d)] + [f"Y{k}=Vj(1)" for k in range(self.d)]
        else:
            own = [f"X=Vi({self.d})", f"Y=Vj({self.d})"]
        own += ["B=Vj(1)", *([f"P=Pm({self.constants})"] if self.constants else [])]
        return own + (["I=Vi(1)", "J=Vj(1)"] if self.masked else [])


def written(frame: Frame) -> tuple[Written, Tensor] | None:
    """The cost of a frame whose points `scaled` has, and its constants ``(B, k)``.

    None where LazyTensors alone know it.
    """
    d, rates = frame.x.shape[-1], frame.rate.detach()[:, 0]
    scalar, single = d <= SCALAR_COORDINATES, frame.y.dtype == torch.float32
    how = frame.mask_self, single
    if frame.quadratic:
        value = traced(squared, d).value if scalar else "SqDist(X,Y)"
        return Written(value, (), d, scalar, 0, *how), rates[:, :0]
    try:
        found = traced(frame.cost, d) if scalar else traced_distance(frame.cost)
    except Exception:  # a user's cost may raise anything
        return None
    constants = rates.new_tensor(found.constants).expand(len(rates), -1)
    constants = torch.cat([constants, rates], 1)
    value = f"Elem(P,{len(found.constants)})*({found.value})"
    return Written(value, found.slopes, d, scalar, constants.shape[-1], *how), constants


def scaled(frame: Frame) -> tuple[Tensor, Tensor]:
    """Points scaled so that a quadratic cost is ‖x − y‖², which spares a product a pair."""
    factor = 0.5**0.5 if frame.quadratic else 1.0
    return (frame.x * factor).contiguous(), (frame.y * factor).contiguous()


@cache
def plain_sum(cost: Written, factor: str, names: tuple[str, ...]) -> Any:
    """Σ_j exp(shift_i + bias_j − c_ij) factor_ij; without a factor, the mass alone.

    Args:
        cost: The cost.
        factor: A formula, or nothing.
        names: Variables of the factor.
    """
    exponent = f"S+B-({cost.value})"
    if cost.single:
        # Denormal results would cost more than all the others, so exponents stop at −63: exp of it
        # is lost beside any sum that is accepted, and adding 63 rounds half as much as 64 would.
        exponent = f"ReLU({exponent}+IntCst(63))-IntCst(63)"
    if cost.masked:  # in the exponent too: that of a point with itself may overflow, and ∞·0 is NaN
        exponent = f"({exponent})*{_OTHER}"
    weight = f"Exp({exponent})"
    if cost.masked:
        weight += f"*{_OTHER}"
    if factor:
        weight += f"*({factor})"
    variables = [*cost.names, "S=Vi(1)", *names]
    return compiler.genred(weight, variables, reduction_op="Sum", axis=1, sum_scheme="direct_sum")


_OTHER = "Step(Square(I-J)-IntInv(2))"  # 1 for pairs i ≠ j, else 0


@cache
def stable_sum(cost: Written, width: int) -> Any:
    """Log Σ_j exp(bias_j − c_ij) by a running maximum, or averages of so many values under it."""
    logit = f"B-({cost.value})"
    if cost.masked:
        logit += f"+(IntCst(1)-{_OTHER})*{_NEVER}"
    if not width:
        return compiler.genred(logit, cost.names, reduction_op="LogSumExp", axis=1)
    names = [*cost.names, f"W=Vj({width})"]
    return compiler.genred(logit, names, reduction_op="SumSoftMaxWeight", axis=1, formula2="W")


def concatenated(terms: Sequence[str]) -> str:
    """Numbers as one vector; nothing for none."""
    return reduce(lambda one, other: f"Concat({one},{other})", terms or [""])


def variables(points: Tensor, scalar: bool) -> list[Tensor]:
    """One variable a coordinate, or the points as one."""
    return [c.contiguous() for c in (points.split(1, -1) if scalar else [points])]


def index(points: Tensor) -> Tensor:
    """0, 1, 2, … along a cloud, as a column; exact in float32 up to 2²⁴ points."""
    return torch.arange(points.shape[-2], dtype=points.dtype, device=points.device)[:, None]
