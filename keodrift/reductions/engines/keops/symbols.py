"""A ground cost written out coordinate by coordinate: formulas that a compiler vectorises.

A loop over atoms is vectorised where every coordinate is a variable of its own; points as vectors
are not, for most costs. So an expression c(x, y) is called once with `Symbol` in the place of
points, which writes down what is done to each coordinate, and beside it the slope in x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from keodrift.costs import Cost

# Added under roots and to what they divide: slopes of a distance are then 0 at 0, not NaN.
_TINY = "*".join(["IntInv(1000000000)"] * 3)

# Functions of one number a, each with its derivative.
FUNCTIONS = {
    "square": ("Square({a})", "IntCst(2)*({a})"),
    "sqrt": ("Sqrt({a})", f"IntInv(2)*Inv(Sqrt({{a}}+{_TINY}))"),
    "exp": ("Exp({a})", "Exp({a})"),
    "log": ("Log({a})", "Inv({a})"),
    "sin": ("Sin({a})", "Cos({a})"),
    "cos": ("Cos({a})", "-Sin({a})"),
    "abs": ("Abs({a})", "Sign({a})"),
    "relu": ("ReLU({a})", "Step({a})"),
}


@dataclass(frozen=True)
class Traced:
    """A cost as a formula of X0, X1, …, Y0, Y1, … and constants ``Elem(P,k)``.

    Attributes:
        value: C, a formula.
        slopes: ∂C/∂x_k, one formula a coordinate.
        constants: What P holds.
    """

    value: str
    slopes: tuple[str, ...]
    constants: tuple[float, ...]


def traced(cost: Cost, d: int) -> Traced:
    """The cost in d dimensions.

    Raises:
        TypeError: The expression does what `Symbol` does not know.
        AttributeError: Likewise.
    """
    constants: list[float] = []
    one = {k: "IntCst(1)" for k in range(d)}
    x = Symbol([_Term(f"X{k}", {k: one[k]}) for k in range(d)], constants)
    y = Symbol([_Term(f"Y{k}", {}) for k in range(d)], constants)
    if cost.radial is not None:
        found: Any = cost.radial((x - y).square().sum(-1).sqrt())
    else:
        found = cost.expression(x, y, **cost.parameters)
    if not isinstance(found, Symbol) or len(found.terms) != 1:
        raise TypeError(f"{cost.name} does not reduce the coordinates to one number")
    (term,) = found.terms
    return Traced(term.value, tuple(term.slope.get(k, "Zero(1)") for k in range(d)), (*constants,))


def traced_distance(cost: Cost) -> Traced:
    """A cost of the distance of points X and Y that are vectors, without slopes.

    Raises:
        TypeError: It is not one, or does what `Symbol` does not know.
        AttributeError: Likewise.
    """
    constants: list[float] = []
    if cost.radial is None:
        raise TypeError(f"{cost.name} is more than a function of the distance")
    found = cost.radial(Symbol([_Term("Sqrt(SqDist(X,Y))", {})], constants))
    return Traced(found.terms[0].value, (), (*constants,))


@dataclass(frozen=True)
class _Term:
    """A number of a pair: its formula, and those of its slopes that are not 0."""

    value: str
    slope: Mapping[int, str]

    def through(self, value: str, factor: str) -> _Term:
        """A function of this number, with its derivative."""
        return _Term(value, {k: f"({factor})*({s})" for k, s in self.slope.items()})


def _plus(a: _Term, b: _Term) -> _Term:
    both = {
        k: f"{a.slope[k]}+{b.slope[k]}" if k in a.slope and k in b.slope else s
        for k, s in (*a.slope.items(), *b.slope.items())
    }
    return _Term(f"({a.value}+{b.value})", both)


def _negative(a: _Term) -> _Term:
    return a.through(f"(-({a.value}))", "-IntCst(1)")


def _times(a: _Term, b: _Term) -> _Term:
    value = f"({a.value})*({b.value})"
    return _Term(value, _plus(a.through("", b.value), b.through("", a.value)).slope)


def _larger(a: _Term, b: _Term) -> _Term:
    above = f"({a.value}-({b.value}))"
    slopes = _plus(a.through("", f"Step{above}"), b.through("", f"(IntCst(1)-Step{above})")).slope
    return _Term(f"IfElse({above},{a.value},{b.value})", slopes)


def _inverse(a: _Term) -> _Term:
    value = f"Inv({a.value})"
    return a.through(value, f"-Square({value})")


def _numbers(constant: object) -> Tensor:
    """A constant of a cost in float64, whatever the default dtype and device are."""
    if isinstance(constant, Tensor):
        return constant.detach().double().cpu()
    return torch.tensor(constant, dtype=torch.float64, device="cpu")


class Symbol:
    """Stands for points ``(…, d)`` or numbers of pairs in an expression, as tensors do there."""

    def __init__(self, terms: Sequence[_Term], constants: list[float]) -> None:
        self.terms, self._constants = list(terms), constants

    def _like(self, other: object) -> Symbol:
        """A number, or a tensor without axes of points, as constants."""
        if isinstance(other, Symbol):
            return other
        values = _numbers(other)
        if values.dim() > 1 and values.numel() != values.shape[-1]:
            raise TypeError("only numbers, vectors and matrices under @ are constants of a cost")
        begin = len(self._constants)
        self._constants += values.reshape(-1).tolist()
        count = len(self._constants) - begin
        return Symbol([_Term(f"Elem(P,{begin + k})", {}) for k in range(count)], self._constants)

    def _with(self, other: object, rule: Callable[[_Term, _Term], _Term]) -> Symbol:
        mine, theirs = self.terms, self._like(other).terms
        if 1 not in (len(mine), len(theirs)) and len(mine) != len(theirs):
            raise TypeError(f"{len(mine)} coordinates do not meet {len(theirs)}")
        count = max(len(mine), len(theirs))
        pairs = zip(mine * (count // len(mine)), theirs * (count // len(theirs)), strict=True)
        return Symbol([rule(*pair) for pair in pairs], self._constants)

    def _each(self, value: str, factor: str) -> Symbol:
        """A function of every number: formulas of it and its derivative, of the number ``a``."""
        terms = (a.through(value.format(a=a.value), factor.format(a=a.value)) for a in self.terms)
        return Symbol(list(terms), self._constants)

    def __add__(self, other: object) -> Symbol:
        return self._with(other, _plus)

    __radd__ = __add__

    def __neg__(self) -> Symbol:
        return Symbol([_negative(a) for a in self.terms], self._constants)

    def __sub__(self, other: object) -> Symbol:
        return self._with(other, lambda a, b: _plus(a, _negative(b)))

    def __rsub__(self, other: object) -> Symbol:
        return -self + other

    def __mul__(self, other: object) -> Symbol:
        return self._with(other, _times)

    __rmul__ = __mul__

    def __truediv__(self, other: object) -> Symbol:
        if not isinstance(other, Symbol):
            return self * (1 / _numbers(other))
        return self._with(other, lambda a, b: _times(a, _inverse(b)))

    def __rtruediv__(self, other: object) -> Symbol:
        return Symbol([_inverse(a) for a in self.terms], self._constants) * other

    def __pow__(self, power: float) -> Symbol:
        if power == 2:
            return self.square()
        if power == 0.5:
            return self.sqrt()
        if power == int(power) and power < 0:
            return 1.0 / self ** (-power)
        if power == int(power) and power > 0:
            return self._each(
                f"Pow({{a}},{int(power)})", f"IntCst({int(power)})*Pow({{a}},{int(power) - 1})"
            )
        return ((self + Symbol([_Term(_TINY, {})], self._constants)).log() * power).exp()

    pow = __pow__

    def __getattr__(self, name: str) -> Callable[[], Symbol]:
        """The functions of one number, as methods."""
        if name not in FUNCTIONS:
            raise AttributeError(f"'{name}' is not among what costs are written out in")
        return partial(self._each, *FUNCTIONS[name])

    def clamp(self, min: float | None = None, max: float | None = None) -> Symbol:
        """Cut from below and above."""
        low = self if min is None else self._with(min, _larger)
        return low if max is None else -((-low)._with(-_numbers(max), _larger))

    def sum(self, dim: int = -1, keepdim: bool = False) -> Symbol:
        """The sum over coordinates."""
        if dim != -1:
            raise TypeError("only the last axis, the coordinates, is reduced")
        total = self.terms[0]
        for term in self.terms[1:]:
            total = _plus(total, term)
        return Symbol([total], self._constants)

    def norm(self, p: float = 2, dim: int = -1, keepdim: bool = False) -> Symbol:
        """The Euclidean length."""
        if p != 2:
            raise TypeError(f"the {p}-norm is not known; write it out")
        return self.square().sum(dim).sqrt()

    def __matmul__(self, matrix: Tensor) -> Symbol:
        if not isinstance(matrix, Tensor) or matrix.dim() != 2:
            raise TypeError("coordinates are multiplied by a matrix, from the right")
        columns = ((self * column).sum(-1).terms[0] for column in matrix.mT)
        return Symbol(list(columns), self._constants)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Symbol:
        """Functions of torch, and tensors on the left, by the method of that name."""
        name = func.__name__.strip("_")
        name = {"true_divide": "truediv", "divide": "truediv", "div": "truediv"}.get(name, name)
        first, *rest = args
        if isinstance(first, Symbol):
            method = getattr(cls, f"__{name}__", None)
            if method is not None:
                if kwargs:
                    raise TypeError(f"{func.__name__} with {', '.join(kwargs)} is not known")
                return method(first, *rest)
            return getattr(first, name)(*rest, **(kwargs or {}))
        return getattr(rest[0], f"__r{name.removeprefix('r')}__")(first)
