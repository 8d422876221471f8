"""From field to generator: stop-gradient regression on x + V, and its usual normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from keodrift.checks import check_cloud, check_positive
from keodrift.costs import euclidean
from keodrift.errors import OptionError
from keodrift.reductions import mean_cost


def drift_loss(
    x: Tensor,
    y: Tensor,
    drift: Callable[..., Tensor] | Sequence[Callable[..., Tensor]],
    *,
    normalize: bool = False,
    scale_features: bool = False,
    **inputs: Any,
) -> Tensor:
    """Regression loss ½·E‖x − sg(x + V)‖² whose gradient in a particle is −V_i/N.

    Args:
        x: Particles, ``(…, N, d)``, usually a network's output with its graph.
        y: Data, ``(…, M, d)``.
        drift: The drift, or several (temperatures), whose fields are added; any ``(x, y) → V``.
        normalize: Divides each field by its root mean square, so that every temperature and every
            stage of training moves particles equally far. Off: the field as it is.
        scale_features: Divides coordinates by the factor that makes the mean distance between
            particles and data √d, before the drift; τ is then relative to that scale.
        **inputs: Weights, negatives, labels, start: as for calling the drift.

    Returns:
        A scalar: mean over particles (and batch axes), sum over coordinates.

    Raises:
        OptionError: No drift was given.
        ArgumentError: An input is not what it should be; see `keodrift.errors`.

    Source: "Sinkhorn drifting", arXiv 2603.12366, eq. 7 and Proposition A.2.

    Example:
        >>> import torch, keodrift as kd
        >>> x = torch.zeros(4, 2, requires_grad=True)
        >>> kd.drift_loss(x, torch.ones(4, 2), kd.OneSidedDrift(tau=1.0)).item()
        1.0
    """
    drifts = drift if isinstance(drift, Sequence) else [drift]
    if not drifts or not all(callable(one) for one in drifts):
        raise OptionError("drift", repr(drift), "a drift or a non-empty sequence of them")
    check_cloud("x", x)
    check_cloud("y", y, x)
    if inputs.get("negatives") is not None:
        check_cloud("negatives", inputs["negatives"], x)
    scale = feature_scale(x, y) if scale_features else 1.0
    features = x / scale
    with torch.no_grad():
        points = features.detach()
        total = torch.zeros_like(points)
        if scale_features:
            y = y / scale
            if inputs.get("negatives") is not None:
                inputs["negatives"] = inputs["negatives"] / scale
        for one in drifts:
            v = one(points, y, **inputs)
            total += v / (v.float().square().mean() + 1e-12).sqrt() if normalize else v
        target = points + total
    per_particle = (features - target).square().sum(-1) / 2
    return per_particle.mean()


def feature_scale(x: Tensor, y: Tensor, points: int = 2048) -> float:
    """Factor S for which the mean distance of x and y, divided by S, is √d.

    Args:
        x: Particles, ``(…, N, d)``.
        y: Data, ``(…, M, d)``.
        points: The mean runs over at most so many points of each cloud, evenly picked.

    Returns:
        A positive length; 1 for clouds at a single point.

    Example:
        >>> import torch
        >>> feature_scale(torch.zeros(1, 4), torch.full((1, 4), 3.0))
        3.0
    """
    distance = mean_cost(x.detach().double(), y.detach().double(), euclidean, points).mean()
    scale = float(distance) / math.sqrt(x.shape[-1])
    return scale if scale > 0 else 1.0


def guidance_weight(omega: float, n_particles: int, n_negatives: int) -> float:
    """Weight of each unconditional negative for guidance ω: (ω − 1)(N − 1)/U.

    Args:
        omega: Guidance strength ω ≥ 1; 1 is no guidance.
        n_particles: N, generated samples of the class.
        n_negatives: U, unconditional samples.

    Raises:
        OptionError: ω < 1, or a count is not positive.

    Example:
        >>> guidance_weight(2.0, 65, 16)
        4.0
    """
    check_positive("n_particles", n_particles, integer=True)
    check_positive("n_negatives", n_negatives, integer=True)
    check_positive("omega", omega)
    if omega < 1:
        raise OptionError("omega", omega, "a guidance strength of at least 1")
    return (omega - 1) * (n_particles - 1) / n_negatives
