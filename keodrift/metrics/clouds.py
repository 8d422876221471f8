"""What all measures share: checks of two clouds, subsamples, the same measure class by class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keodrift.checks import check_labels, check_plain, check_positive, check_range
from keodrift.errors import ArgumentError, DtypeError, ShapeError

Metric = Callable[[Tensor, Tensor], float]


def check_pair(x: Tensor, y: Tensor, name: str, least: int = 1) -> None:
    """Checks two clouds ``(N, d)`` and ``(M, d)`` of at least so many finite points."""
    for which, points in (("x", x), (name, y)):
        if not isinstance(points, Tensor) or points.dtype.is_complex:
            got = getattr(points, "dtype", type(points).__name__)
            raise DtypeError(which, got, "a tensor of real numbers")
        check_plain(which, points)
    if x.ndim != 2 or len(x) < least:
        raise ShapeError("x", tuple(x.shape), f"a shape (N, d) with N ≥ {least}")
    if y.ndim != 2 or len(y) < least or y.shape[1] != x.shape[1]:
        raise ShapeError(name, tuple(y.shape), f"a shape (M, {x.shape[1]}) with M ≥ {least}")
    for which, points in (("x", x), (name, y)):
        check_range(which, points.double())


def subsample(points: Tensor, cap: int, generator: torch.Generator | None = None) -> Tensor:
    """At most ``cap`` of the points, drawn without replacement; all of them where they fit.

    Args:
        points: ``(N, d)``.
        cap: Largest number of points to keep.
        generator: Decides which; a fixed one if None, so that equal calls agree.

    Raises:
        ArgumentError: ``cap`` is no positive integer, or ``generator`` no generator.

    Example:
        >>> subsample(torch.zeros(10, 2), 4).shape
        torch.Size([4, 2])
    """
    check_positive("cap", cap, integer=True)
    if not isinstance(generator, torch.Generator | None):
        raise ArgumentError("generator", type(generator).__name__, "a torch.Generator, or None")
    if len(points) <= cap:
        return points
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(points), generator=generator, device=generator.device)
    return points[order[:cap].to(points.device)]


def by_class(
    metric: Metric, x: Tensor, x_labels: Tensor, y: Tensor, y_labels: Tensor, least: int = 1
) -> dict[int, float]:
    """A measure between the parts of two labelled clouds, each of at least so many points.

    Raises:
        ArgumentError: A class of ``y`` has too few samples on either side, or labels are not one
            integer a point.
    """
    check_labels("x_labels", x_labels, x)
    check_labels("y_labels", y_labels, y)
    parts = {
        label: (x[x_labels == label], y[y_labels == label])
        for label in torch.unique(y_labels).tolist()
    }
    for label, pair in parts.items():
        for name, part in zip(("x_labels", "y_labels"), pair, strict=True):
            if len(part) < least:
                got = f"{len(part) or 'no'} sample{'s' * (len(part) > 1)} of class {label}"
                raise ArgumentError(name, got, f"{least} or more of every class of y")
    return {label: metric(*pair) for label, pair in parts.items()}
