"""Typed errors and warnings: each names the argument, what it got and what it needs."""

from __future__ import annotations

import sys

import torch


def users_stacklevel() -> int:
    """The ``stacklevel`` at which a warning points to the first caller outside this package."""
    package, level = __name__.partition(".")[0], 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level


# What torch says of a CPU's memory, and the compiled engine of either's, in an error of any type.
SIGNS = ("out of memory", "out_of_memory", "not enough memory", "can't allocate memory")


def is_short(error: BaseException) -> bool:
    """Whether an error is want of memory."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(sign in str(error).lower() for sign in SIGNS)


class ArgumentError(ValueError):
    """A public call was given an argument it cannot work with.

    Attributes:
        argument: Name of the argument.
        got: What was passed, in words.
        needs: What would be accepted, in words.
    """

    def __init__(self, argument: str, got: object, needs: str) -> None:
        self.argument, self.got, self.needs = argument, str(got), needs
        super().__init__(f"{argument}: got {got}, needs {needs}.")

    def __reduce__(self) -> tuple:
        # Exceptions are rebuilt from their message alone, unless they say otherwise.
        return type(self), (self.argument, self.got, self.needs)


class ShapeError(ArgumentError):
    """An array has the wrong rank, dimension or number of points."""


class DtypeError(ArgumentError, TypeError):
    """An array has the wrong dtype, or two arrays disagree."""


class DeviceError(ArgumentError):
    """Arrays live on different devices; nothing is moved silently."""


class NonFiniteError(ArgumentError):
    """A cloud holds NaN or infinite coordinates."""


class WeightsError(ArgumentError):
    """Weights are negative, not finite or all zero."""


class TemperatureError(ArgumentError):
    """The temperature is no positive finite number, or too small for the costs."""


class OptionError(ArgumentError):
    """An option is unknown or contradicts another one."""


class CostError(ArgumentError):
    """A user-defined ground cost does not return one number a pair."""


class MissingDependencyError(ImportError):
    """An optional package is needed for this call."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        self._made_from = package, purpose, extra
        how = f"pip install 'keodrift[{extra}]', or '.[{extra}]' in a checkout"
        super().__init__(f"{purpose} needs the package {package}: {how}.")

    def __reduce__(self) -> tuple:
        return type(self), self._made_from


class EngineError(RuntimeError):
    """An engine failed on its device as it ran; no other engine was asked in its place."""

    def __init__(self, engine: str, device: str, reason: str) -> None:
        self._made_from = engine, device, reason
        super().__init__(
            f"the {engine} engine failed on {device} as it ran: {reason} What the device said may "
            "be on standard error; a process whose device has failed cannot use it again."
        )

    def __reduce__(self) -> tuple:
        return type(self), self._made_from


class OutOfMemoryError(ArgumentError, torch.OutOfMemoryError):
    """An engine's pairs or vectors do not fit into memory; says what would."""


class RunError(RuntimeError):
    """A run ended without its result; what was done before it is kept."""


class DivergedError(FloatingPointError):
    """A training left the finite numbers; what was kept before stays.

    Attributes:
        sign: What was seen, in words.
        step: Steps done by then, or None where nobody counts them.
    """

    def __init__(self, sign: str, step: int | None = None) -> None:
        self.sign, self.step = sign, step
        when = "" if step is None else f"at step {step} "
        super().__init__(f"training diverged: {when}{sign}")

    def __reduce__(self) -> tuple:
        return type(self), (self.sign, self.step)


class ConvergenceWarning(UserWarning):
    """A solve stopped at its cap; raise the cap, the tolerance or the temperature."""


class BackendWarning(UserWarning):
    """An engine was not available and another one answered instead, or had to be mended."""
