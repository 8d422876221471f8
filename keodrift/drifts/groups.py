"""Independent problems of different sizes in one call: one class a problem, by label.

Small classes are padded with points of weight 0 into one batch, which the dense engine solves
together; classes too large for that run one after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from keodrift.checks import check_cloud, check_column, check_labels
from keodrift.errors import ShapeError
from keodrift.reductions import choose_backend

if TYPE_CHECKING:
    from keodrift.drifts.base import Drift


def drift_by_label(
    drift: Drift,
    x: Tensor,
    y: Tensor,
    labels: dict[str, Tensor | None],
    given: dict[str, Tensor | None],
) -> Tensor:
    """One drift a class, ``(N, d)``; data of a class without particles is left out.

    Raises:
        ShapeError: Labels are missing for a cloud, or a class of particles has no data.
    """
    clouds = {"x": x, "y": y}
    if given["negatives"] is not None:
        clouds["negatives"] = given["negatives"]
    elif labels["negatives"] is not None:
        raise ShapeError("negative_labels", "labels without points", "negatives to label")
    groups: dict[str, list[Tensor]] = {}
    classes = None
    for name, cloud in clouds.items():
        check_cloud(name, cloud, None if name == "x" else x)
        argument = {"x": "x_labels", "y": "y_labels", "negatives": "negative_labels"}[name]
        label = labels[name]
        if label is None:
            raise ShapeError(argument, "None", f"one label a point of {name}, as the others have")
        check_labels(argument, label, cloud)
        classes = torch.unique(label) if classes is None else classes
        groups[name] = [(label == c).nonzero()[:, 0] for c in classes]
        empty = [
            int(c) for c, members in zip(classes, groups[name], strict=True) if len(members) == 0
        ]
        if empty and name == "y":
            raise ShapeError(
                argument, f"no data for the classes {empty}", "data for every class of x"
            )

    weights = {
        name: _column(argument, given[argument], clouds[name])
        for name, argument in (
            ("x", "x_weights"),
            ("y", "y_weights"),
            ("negatives", "negative_weights"),
        )
        if name in clouds
    }
    if given["negative_weights"] is not None and "negatives" not in clouds:
        raise ShapeError("negative_weights", "weights without points", "negatives to weight")
    out = torch.zeros_like(x, requires_grad=False)
    for batch in _batches(drift, x.shape[-1], x.device.type, groups):
        padded = {name: _pad([groups[name][k] for k in batch]) for name in clouds}
        points = {name: clouds[name].detach()[index] for name, (index, _) in padded.items()}
        mass = {name: weights[name][index] * alive for name, (index, alive) in padded.items()}
        v = drift(
            points["x"],
            points["y"],
            x_weights=mass["x"],
            y_weights=mass["y"],
            negatives=points.get("negatives"),
            negative_weights=mass.get("negatives"),
        )
        index, alive = padded["x"]
        out[index[alive]] = v[alive]
    return out


def _column(argument: str, weights: Tensor | None, cloud: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(len(cloud), dtype=torch.float64, device=cloud.device)
    return check_column(argument, weights, cloud)


def _batches(drift: Drift, d: int, device: str, groups: dict[str, list[Tensor]]) -> list[list[int]]:
    """All classes at once if their padded batch is small enough to be stored, else singly."""
    everything = list(range(len(groups["x"])))
    largest = {name: max(map(len, members)) for name, members in groups.items()}
    columns = max(largest["y"], largest["x"] + largest.get("negatives", 0))
    choice = choose_backend(
        largest["x"],
        columns,
        d,
        batch=len(everything),
        device=device,
        cost=drift.cost,
        mask_self=drift.mask_self,
    )
    together = drift.backend == "dense" or (drift.backend == "auto" and choice.engine == "dense")
    return [everything] if together else [[k] for k in everything]


def _pad(members: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Indices ``(B, K)`` with repeats for padding, and which of them are real."""
    width = max(1, max(len(m) for m in members))
    device = members[0].device
    index = torch.zeros(len(members), width, dtype=torch.long, device=device)
    alive = torch.zeros(len(members), width, dtype=torch.bool, device=device)
    for row, m in enumerate(members):
        index[row, : len(m)] = m
        alive[row, : len(m)] = True
        if len(m):
            index[row, len(m) :] = m[0]
    return index, alive
