"""From field to network: stop-gradient regression on x + V, and its usual normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from keodrift.checks import (
    check_cloud,
    check_labels,
    check_positive,
    check_weights,
    normalised,
)
from keodrift.costs import euclidean
from keodrift.drifts.by_class import for_every_class, members_of, padded
from keodrift.errors import OptionError, ShapeError
from keodrift.reductions import expected_cost

POINTS = 2048  # of each cloud, at most, in the mean distance that scales features


def drift_loss(
    x: Tensor,
    y: Tensor,
    drift: Callable[..., Tensor] | Sequence[Callable[..., Tensor]],
    *,
    normalize: bool = False,
    scale_features: bool = False,
    **inputs: Any,
) -> Tensor:
    """Regression loss ½·E‖x − sg(x + V)‖² whose gradient in a particle is −a_i V_i.

    Args:
        x: Particles, ``(…, N, d)``, usually a network's output with its graph.
        y: Data, ``(…, M, d)``.
        drift: The drift, or several (temperatures), whose fields are added; any ``(x, y) → V``.
        normalize: Divides each field by its root mean square, in each problem and class by its own,
            so that every temperature, class and stage of training moves particles equally far.
            Off: the field as it is.
        scale_features: Divides coordinates by the factor that makes the mean distance of particles
            to data, negatives and other draws of the model √d, before the drift, in each problem
            and class by its own; points of weight 0 do not count. τ is then relative to that scale.
        **inputs: Weights, model, negatives, labels, start: as for calling the drift.

    Returns:
        A scalar, in float32 at least: mean over particles by their weights (and over batch axes),
        sum over coordinates.

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
    for name in ("model", "negatives"):
        if inputs.get(name) is not None:
            check_cloud(name, inputs[name], x)
    if inputs.get("x_labels") is not None:
        check_labels("x_labels", inputs["x_labels"], x)
    shares = _shares(x, inputs.get("x_weights"))
    scale: Tensor | float = 1.0
    with torch.no_grad():
        if scale_features:
            scale, y, inputs = _scaled(x.detach(), y, inputs)
    features = x / scale
    single = torch.promote_types(x.dtype, torch.float32)
    with torch.no_grad():
        points = features.detach()
        total = torch.zeros_like(points, dtype=single)
        for one in drifts:
            v = one(points, y, **inputs)
            if not isinstance(v, Tensor) or v.shape != points.shape:
                got = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
                raise ShapeError("drift", f"a field of {got}", f"one of {tuple(points.shape)}")
            v = v.to(single)
            if normalize:
                size = _own_means(v.double().square().mean(-1), shares, inputs.get("x_labels"))
                v = (v / (size[..., None] + 1e-12) ** 0.5).to(single)
            total += v
        target = points.to(single) + total
    apart = (features.to(single) - target).square().sum(-1) / 2
    return (shares.to(single) * apart).sum()


def _shares(x: Tensor, weights: Tensor | None) -> Tensor:
    """What each particle counts in a mean over all, ``(…, N)``, with sum 1."""
    problems = max(1, x.shape[:-2].numel())
    return normalised("x_weights", check_weights("x_weights", weights, x)) / problems


def _own_means(values: Tensor, shares: Tensor, labels: Tensor | None) -> Tensor:
    """The mean of values ``(…, N)`` in the problem or class of each particle."""
    if labels is None:
        return (shares * values).sum(-1, keepdim=True) / shares.sum(-1, keepdim=True)
    _, members = torch.unique(labels, return_inverse=True)
    sums = values.new_zeros(2, int(members.max()) + 1)
    sums.index_add_(1, members, torch.stack([shares * values, shares]))
    # A class without weight is moved by nothing.
    return (sums[0] / sums[1].clamp_min(torch.finfo(sums.dtype).tiny))[members]


def _scaled(x: Tensor, y: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The scale of each particle, and data and inputs divided by that of their problem or class."""
    labels, inputs = inputs.get("x_labels"), dict(inputs)
    others = [name for name in ("model", "negatives") if inputs.get(name) is not None]
    if labels is not None and "negatives" in others and inputs.get("negative_labels") is None:
        names = [n for n in ("negatives", "negative_weights") if inputs.get(n) is not None]
        *rows, own = for_every_class(torch.unique(labels), *(inputs[name] for name in names))
        inputs |= dict(zip(names, rows, strict=True)) | {"negative_labels": own}
    clouds = {"x": x, "y": y} | {name: inputs[name] for name in others}
    alive = []
    for name, z in clouds.items():
        key = f"{name.removesuffix('s')}_weights"
        alive.append(check_weights(key, inputs.get(key), z) > 0)
    if labels is None:
        counted = [
            (z, some.double(), some.double().sum(-1))
            for z, some in zip(clouds.values(), alive, strict=True)
        ]
        scale = _distance_scale(*counted, points=POINTS).to(x.dtype)[..., None, None]
        scales = [scale] * len(clouds)
    else:
        scales = _class_scales(clouds, alive, inputs)
    found = dict(zip(clouds, scales, strict=True))
    return (
        found["x"],
        y / found["y"],
        inputs | {name: inputs[name] / found[name] for name in others},
    )


def _class_scales(
    clouds: dict[str, Tensor], alive: list[Tensor], inputs: dict[str, Any]
) -> list[Tensor]:
    """The scale of every point of each cloud, ``(K, 1)``: that of its class."""
    members = []
    for name, z in clouds.items():
        key = f"{name.removesuffix('s')}_labels"
        if inputs.get(key) is None:
            raise ShapeError(key, "None", "labels, as the others have")
        own = check_labels(key, inputs[key], z)
        members.append(members_of(own, torch.unique(inputs["x_labels"]).tolist()))
    batch = []
    for z, some, theirs in zip(clouds.values(), alive, members, strict=True):
        counted = [m[some[m]] for m in theirs]
        index, filled = padded([m[:: max(1, -(-len(m) // POINTS))] for m in counted])
        counts = torch.tensor([len(m) for m in counted], dtype=torch.float64, device=z.device)
        batch.append((z[index], filled.double(), counts))
    found = _distance_scale(*batch, points=POINTS).to(clouds["x"].dtype)
    # A point of a class that no particle has stays as it is; the drift refuses it.
    scales = [z.new_ones(len(z), 1) for z in clouds.values()]
    for scale, theirs in zip(scales, members, strict=True):
        for m, size in zip(theirs, found, strict=True):
            scale[m] = size
    return scales


def feature_scale(x: Tensor, y: Tensor, *others: Tensor, points: int = POINTS) -> Tensor:
    """Factor S for which the mean distance of particles to all others, divided by S, is √d.

    Args:
        x: Particles, ``(…, N, d)``.
        y: Data, ``(…, M, d)``.
        *others: What repels beside the particles, or in their place, ``(…, U, d)`` each.
        points: The mean runs over at most so many points of each cloud, evenly picked.

    Returns:
        A positive length a problem, float64 ``(…,)``; 1 for clouds at a single point.

    Example:
        >>> import torch
        >>> feature_scale(torch.zeros(1, 4), torch.full((1, 4), 3.0)).item()
        3.0
    """
    clouds = [
        (z, z.new_ones(z.shape[:-1], dtype=torch.float64), z.shape[-2]) for z in (x, y, *others)
    ]
    return _distance_scale(*clouds, points=points)


def _distance_scale(*clouds: tuple[Tensor, Tensor, Tensor | int], points: int) -> Tensor:
    """`feature_scale` of clouds, each with weights ``(…, K)`` and the number it stands for."""
    (x, a, _), *others = ((z.detach().double(), w, count) for z, w, count in clouds)
    met = [(expected_cost(x, a, y, b, euclidean, points), n) for y, b, n in others if y.numel()]
    total = sum(n * mean for mean, n in met)
    total = torch.as_tensor(total, device=x.device)
    scale = total / (sum(n for _, n in met) * math.sqrt(x.shape[-1]))
    return torch.where(scale > 0, scale, 1.0)


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
