"""Who repels the samples of a batch: themselves, other draws, or each half of them the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from keodrift.drifts import SoftmaxDrift
from keodrift.errors import OptionError, ShapeError

NEGATIVES = ("self", "masked", "fresh", "crossed")


def masked(drift: Callable[..., Tensor]) -> SoftmaxDrift:
    """The drift without pairs of a particle with itself.

    Raises:
        OptionError: It is none of two softmax sides.
    """
    if not isinstance(drift, SoftmaxDrift):
        got = f"'masked' with {type(drift).__name__}"
        raise OptionError("negatives", got, "a softmax drift, or other negatives")
    return replace(drift, mask_self=True)


def refuse_masks(drifts: Sequence[Callable[..., Tensor]]) -> None:
    """Refuses a mask where points are spread more evenly than independent ones.

    Raises:
        OptionError: A drift leaves out the pairs of a particle with itself.
    """
    if any(isinstance(drift, SoftmaxDrift) and drift.mask_self for drift in drifts):
        needs = (
            "'fresh', 'crossed' or independent batches: a mask presumes independent points, and "
            "with evenly spread ones the model expands beyond the data's variance"
        )
        raise OptionError("negatives", "a mask (mask_self=True) on balanced batches", needs)


def crossed(x: Tensor, y: Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a drift is given so that the two halves of every class repel each other.

    Each half meets as many data as it has repellers; unequal numbers would bring back the bias
    that other repellers avoid.

    Args:
        x: Samples, ``(N, d)``.
        y: Data, ``(N, d)``, of every class as many as samples.
        options: What the drift is given otherwise: labels, weights, negatives.

    Returns:
        The options with the samples as ``model`` and labels, a class and half each.

    Raises:
        OptionError: A model cloud is given.
        ShapeError: A class has a single sample, or not as many data as samples.
    """
    if "model" in options:
        raise OptionError("negatives", "'crossed' for a batch with a model", "'fresh'")
    labels = [
        _one_class(z) if options.get(name) is None else options[name]
        for z, name in ((x, "x_labels"), (y, "y_labels"))
    ]
    labels = [own.long() for own in labels]  # two classes of each fit into no smaller kind
    counts, ranks = zip(*map(_ranks, labels), strict=True)
    if any(len(z) != len(own) for z, own in zip((x, y), labels, strict=True)) or not all(
        torch.equal(*parts) for parts in zip(*counts, strict=True)
    ):
        raise ShapeError("y", f"{len(y)} data", f"of every class as many as samples ({len(x)})")
    if int(counts[0][1].min()) < 2:
        raise ShapeError("x", "a class of one sample", "two of every class, to repel each other")
    size = counts[0][1]
    first = (size + 1) // 2, size // 2  # of the samples, and of the data they meet
    halves = [
        (rank >= most[inverse]).long() for most, (rank, inverse) in zip(first, ranks, strict=True)
    ]
    given = dict(options)
    given["x_labels"], given["y_labels"] = (
        2 * own + half for own, half in zip(labels, halves, strict=True)
    )
    given["model"], given["model_labels"] = x.detach(), 2 * labels[0] + 1 - halves[0]
    if given.get("x_weights") is not None:
        given["model_weights"] = given["x_weights"]
    if given.get("negative_labels") is not None:
        own = 2 * given["negative_labels"].long()
        given["negative_labels"] = torch.cat([own, own + 1])
        for name in ("negatives", "negative_weights"):
            if given.get(name) is not None:
                given[name] = torch.cat([given[name]] * 2)
    return given


def _one_class(points: Tensor) -> Tensor:
    """One class for all."""
    return torch.zeros(len(points), dtype=torch.long, device=points.device)


def _ranks(labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Classes and their sizes; the place of each point in its class, and that class's index."""
    classes, inverse, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    order = inverse.argsort(stable=True)
    rank = torch.empty_like(inverse)
    begins = sizes.cumsum(0) - sizes
    rank[order] = torch.arange(len(labels), device=labels.device) - begins[inverse[order]]
    return (classes, sizes), (rank, inverse)
