"""Checks of what users pass, once, at the door: typed errors before any computation."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from keodrift.errors import (
    DeviceError,
    DtypeError,
    NonFiniteError,
    OptionError,
    ShapeError,
    TemperatureError,
    WeightsError,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_cloud(name: str, points: Tensor, like: Tensor | None = None) -> Tensor:
    """Checks a cloud ``(…, K, d)`` and returns a copy, detached, in float32 at least.

    A copy, because a fitted field keeps its clouds while the caller's particles move on.

    Args:
        name: Name of the argument.
        points: The cloud.
        like: The first cloud of the call; batch axes, d, dtype and device must agree with it.

    Raises:
        ShapeError: Wrong rank, no points, or shapes that disagree.
        DtypeError: Not a floating-point tensor, or dtypes that disagree.
        DeviceError: Devices that disagree.
        NonFiniteError: NaN or infinite coordinates.
    """
    if not isinstance(points, Tensor):
        raise DtypeError(name, type(points).__name__, "a floating-point torch tensor (…, N, d)")
    if points.dtype not in DTYPES:
        raise DtypeError(name, points.dtype, "float32, float64, float16 or bfloat16")
    check_plain(name, points)
    shape = tuple(points.shape)
    if points.dim() < 2 or points.shape[-1] == 0:
        raise ShapeError(name, f"shape {shape}", "(…, number of points, d) with d ≥ 1")
    if points.numel() == 0:
        raise ShapeError(name, f"shape {shape}", "at least one point")
    if like is not None:
        if points.device != like.device:
            raise DeviceError(name, points.device, f"the device of x, {like.device}")
        if points.dtype != like.dtype:
            raise DtypeError(name, points.dtype, f"the dtype of x, {like.dtype}")
        if points.shape[-1] != like.shape[-1]:
            raise ShapeError(name, f"d = {shape[-1]}", f"the dimension of x, d = {like.shape[-1]}")
        if points.shape[:-2] != like.shape[:-2]:
            raise ShapeError(
                name, f"batch axes {shape[:-2]}", f"those of x, {tuple(like.shape[:-2])}"
            )
    points = points.detach().clone()
    if points.dtype in (torch.float16, torch.bfloat16):
        points = points.float()
    check_range(name, points)
    return points


def check_plain(name: str, tensor: Tensor) -> None:
    """Checks that a tensor holds its values in the ordinary way.

    Raises:
        DtypeError: It is sparse, nested, or inside a transform.
        DeviceError: It is a meta tensor.
    """
    if tensor.is_nested or tensor.layout != torch.strided:
        got = "a nested tensor" if tensor.is_nested else tensor.layout
        raise DtypeError(name, got, "a dense tensor")
    if tensor.is_meta:
        raise DeviceError(name, "a meta tensor", "points with values")
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        needs = "a plain tensor; batch axes and a field's own gradients need no transform"
        raise DtypeError(name, "a tensor inside a torch.func transform", needs)


def check_queries(name: str, points: Tensor, like: Tensor) -> Tensor:
    """Checks queries ``(…, K, d)`` of a field and returns them in its dtype, with their graph.

    Args:
        name: Name of the argument.
        points: The queries; their floating-point dtype is free.
        like: The particles of the field.

    Raises:
        ArgumentError: As `check_cloud`.
    """
    if isinstance(points, Tensor) and points.dtype in DTYPES:
        check_cloud(name, points.detach().to(like.dtype), like)
        return points.to(like.dtype)
    return check_cloud(name, points, like)


def check_finite(name: str, points: Tensor) -> None:
    """Checks that no coordinate is NaN or infinite."""
    if not bool(torch.isfinite(points).all()):
        bad = int((~torch.isfinite(points)).sum())
        raise NonFiniteError(name, f"{bad} NaN or infinite coordinates", "finite coordinates")


def check_range(name: str, points: Tensor) -> None:
    """Checks that coordinates, and squares of their differences, are finite.

    Raises:
        NonFiniteError: They are not.
    """
    largest, limit = float(points.abs().max()), torch.finfo(points.dtype).max ** 0.5 / 1024
    if not largest <= limit:  # as a NaN is not
        check_finite(name, points)
        raise NonFiniteError(
            name,
            f"coordinates up to {largest:.1e}, whose squares overflow",
            f"coordinates below {limit:.1e}; rescale them",
        )


def check_weights(name: str, weights: Tensor | None, points: Tensor) -> Tensor:
    """Checks weights ``(…, K)`` of a cloud and returns them in float64; ones where none are given.

    Raises:
        ShapeError: Not one weight a point.
        DeviceError: Not on the device of the cloud.
        DtypeError: Not a real tensor.
        WeightsError: Negative or not finite.
    """
    if weights is None:
        return torch.ones(points.shape[:-1], dtype=torch.float64, device=points.device)
    if not isinstance(weights, Tensor) or weights.dtype.is_complex:
        raise DtypeError(name, type(weights).__name__, "a real tensor, one weight a point")
    check_plain(name, weights)
    if weights.device != points.device:
        raise DeviceError(name, weights.device, f"the device of x, {points.device}")
    if weights.shape != points.shape[:-1]:
        raise ShapeError(
            name, f"shape {tuple(weights.shape)}", f"one weight a point, {tuple(points.shape[:-1])}"
        )
    weights = weights.detach().double()
    if bool(((weights >= 0) & (weights < torch.inf)).all()):
        return weights
    if not bool(torch.isfinite(weights).all()):
        raise WeightsError(name, "NaN or infinite weights", "finite, non-negative weights")
    raise WeightsError(name, f"a weight of {float(weights.min()):g}", "non-negative weights")


def normalised(name: str, weights: Tensor) -> Tensor:
    """Checked weights ``(…, K)`` scaled to sum 1.

    Raises:
        WeightsError: All of a problem's weights are zero.
    """
    total = weights.sum(-1, keepdim=True)
    if bool(((total > 0) & (total < torch.inf)).all()):
        return weights / total
    if not bool((total > 0).all()):
        raise WeightsError(name, "weights that are all zero", "a positive sum in every problem")
    return normalised(name, weights / weights.amax(-1, keepdim=True))


def check_labels(name: str, labels: Tensor, points: Tensor) -> Tensor:
    """Checks integer labels ``(K,)`` of an unbatched cloud."""
    if points.dim() != 2:
        raise ShapeError(name, f"a cloud of shape {tuple(points.shape)}", "an unbatched (N, d)")
    if not isinstance(labels, Tensor) or labels.dtype.is_floating_point or labels.dtype.is_complex:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise DtypeError(name, got, "an integer tensor, one label a point")
    check_plain(name, labels)
    if labels.shape != points.shape[:1]:
        raise ShapeError(name, f"shape {tuple(labels.shape)}", f"{tuple(points.shape[:1])}")
    if labels.device != points.device:
        raise DeviceError(name, labels.device, f"the device of x, {points.device}")
    return labels


def check_tau(tau: object) -> float:
    """Checks a temperature and returns it as a float.

    Raises:
        TemperatureError: Not a number, not finite, or not positive.
    """
    value = _number(tau)
    if not 1e-30 <= value <= 1e30:
        needs = "a positive finite number (1e-30 to 1e30), in the unit of the cost"
        raise TemperatureError("tau", repr(tau), needs)
    return value


def check_reach(reach: object) -> float | None:
    """Checks ρ and returns it as a float, or None for marginals that are exact.

    Raises:
        OptionError: Not a number, not finite, or not positive.
    """
    if reach is None:
        return None
    value = _number(reach)
    if not 1e-30 <= value <= 1e30:
        needs = "None or a positive finite number (1e-30 to 1e30), in the unit of the cost"
        raise OptionError("reach", repr(reach), needs)
    return value


def _number(value: object) -> float:
    """A real number as a float; NaN for anything else (a bool is no number)."""
    if isinstance(value, bool):
        return math.nan
    return float(value) if isinstance(value, Real) else math.nan


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Checks that an option is one of the known words."""
    if value not in choices:
        raise OptionError(name, repr(value), "one of " + ", ".join(repr(c) for c in choices))


def check_positive(name: str, value: object, *, integer: bool = False) -> None:
    """Checks that a number is positive and finite."""
    number = _number(value)
    whole = isinstance(value, Integral) or not integer
    if not (whole and math.isfinite(number) and number > 0):
        raise OptionError(name, repr(value), f"a positive {'integer' if integer else 'number'}")
