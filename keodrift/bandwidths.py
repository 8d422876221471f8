"""Bandwidths of kernels by the usual rule."""

from __future__ import annotations

import math

from torch import Tensor

from keodrift.checks import check_cloud
from keodrift.errors import ArgumentError, ShapeError


def silverman_bandwidth(y: Tensor) -> float:
    """Silverman's rule: what a Gaussian kernel needs to estimate a density that is itself normal.

    h = σ·(4/((d + 2)M))^(1/(d + 4)), σ² the mean variance of the coordinates. It suits densities,
    ``KLDrift(tau=h²)``; discrepancies usually take the larger `keodrift.metrics.median_distance`.

    Args:
        y: Data, ``(M, d)``.

    Returns:
        h, a length.

    Raises:
        ArgumentError: ``y`` is not one cloud, or all its points coincide.

    Source: Silverman, "Density estimation for statistics and data analysis", 1986, section 4.3.

    Example:
        >>> import torch, keodrift as kd
        >>> round(kd.silverman_bandwidth(torch.tensor([[-1.0], [0.0], [1.0]])), 3)
        0.85
    """
    points = check_cloud("y", y).double()
    if points.dim() != 2:
        raise ShapeError("y", f"shape {tuple(points.shape)}", "one cloud, a shape (M, d)")
    m, d = points.shape
    square = float((points - points.mean(0)).square().sum() / max(1, m - 1) / d)
    if bool((points == points[0]).all()):
        raise ArgumentError("y", "points that coincide", "two different points at least")
    return math.sqrt(square) * (4 / ((d + 2) * m)) ** (1 / (d + 4))
