"""The lines of the figures of gradient flows: what each trains with, and how they are drawn.

Kernels are exp(−‖x−y‖²/2τ): a bandwidth is √τ, and one axis serves all lines but three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keodrift.drifts import (
    ChiSquareDrift,
    CriticDrift,
    Drift,
    KALEDrift,
    KLDrift,
    MMDDrift,
    SinkhornDrift,
    SinkhornProxyDrift,
    SlicedWassersteinDrift,
    TwoSidedDrift,
)
from keodrift.plots import new_figure, save_figure
from keodrift.studies import Row, grouped
from keodrift.tasks import PlanarTask

TAUS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
FEW_TAUS = TAUS[2:6]


@dataclass(frozen=True)
class Line:
    """A flow and what is varied.

    Attributes:
        make: The drift of a value of the hyper-parameter, for a task.
        values: Those that are tried.
        parameter: What it is called.
        paper: Whether the paper has it.
        remedies: Train with fresh negatives, balanced batches and averaged weights.
    """

    make: Callable[[Any, PlanarTask], Drift]
    values: tuple[float, ...] = TAUS
    parameter: str = "τ"
    paper: bool = True
    remedies: bool = False


def _slices(count: int, task: PlanarTask) -> Drift:
    draw = torch.Generator().manual_seed(2000 + task.seed)  # not the stream of the training
    return SlicedWassersteinDrift(count, generator=draw)


LINES = {
    "KL": Line(lambda tau, _: KLDrift(tau)),
    "MMD": Line(lambda tau, _: MMDDrift(tau**0.5)),
    "Sinkhorn 100": Line(lambda tau, _: SinkhornDrift(tau, half_steps=201)),
    "proxy": Line(lambda tau, _: SinkhornProxyDrift(tau, mask_self=False)),
    "DA2": Line(lambda tau, _: TwoSidedDrift(tau, form="joint")),
    "sliced": Line(_slices, (1, 10, 100), "slices"),
    "recommended": Line(
        lambda tau, task: SinkhornDrift(tau, tol=1e-2, reach=task.reach()),
        FEW_TAUS, paper=False, remedies=True,
    ),
    "KALE": Line(lambda tau, _: KALEDrift(tau, lam=0.1, tol=1e-2), FEW_TAUS, paper=False),
    "chi-square": Line(
        lambda tau, _: ChiSquareDrift(tau, lam=0.1, tol=1e-2), FEW_TAUS, paper=False
    ),
    "critic": Line(
        lambda weight, _: CriticDrift(steps=5, penalty="gradient", weight=weight),
        (0.01, 0.1, 1.0), "penalty", paper=False,
    ),
}  # fmt: skip


def best_of(rows: list[Row]) -> dict[tuple, Row]:
    """Of every target and flow the row with the smallest MMD²."""
    return {
        at: min(mine, key=lambda row: row["mmd_squared"])
        for at, mine in grouped(rows, "target", "flow").items()
    }


def draw_curves(rows: list[Row], title: str, path: Path) -> None:
    """MMD² over τ, mean and range over seeds, one panel a target."""
    targets = grouped(rows, "target")
    figure, panels = new_figure(3.2 * len(targets) + 2, 3.6, 1, len(targets))
    for panel, ((target,), mine) in zip(panels[0], targets.items(), strict=True):
        flows = grouped(sorted(mine, key=lambda row: row["value"]), "flow")
        for k, (flow, line) in enumerate(LINES.items()):
            found, how = flows.get((flow,), []), {"color": f"C{k}"}
            names = ("value", "mmd_squared", "mmd_squared_low", "mmd_squared_high")
            values, means, low, high = ([row[name] for row in found] for name in names)
            if line.parameter == "τ":
                panel.plot(values, means, "o-" if line.paper else "s:", ms=3, label=flow, **how)
                panel.fill_between(values, low, high, alpha=0.15, lw=0, **how)
            elif found:  # what has no temperature is a band over its values
                label = f"{flow}, {values[0]:g} to {values[-1]:g} ({line.parameter})"
                panel.axhspan(min(means), max(means), alpha=0.25, label=label, **how)
        floor = float(np.mean([row["mmd_squared_floor"] for row in mine]))
        panel.axhline(floor, color="0.5", ls="--", label="real against real")
        panel.set(xscale="log", yscale="log", xlabel="τ [length$^2$]", title=target)
    panels[0, 0].set_ylabel("MMD$^2$")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    figure.suptitle(f"{title}: lower is better, the dashed line is as good as real data")
    save_figure(figure, path)


def draw_densities(clouds: Mapping[tuple, Tensor], rows: list[Row], title: str, path: Path) -> None:
    """Histograms of the samples of a target and flow, the data (flow ``""``) first."""
    best, targets = best_of(rows), grouped(rows, "target")
    flows = ["", *(flow for flow in LINES if (flow,) in grouped(rows, "flow"))]
    size = len(targets), len(flows)
    figure, panels = new_figure(1.7 * size[1], 1.9 * size[0] + 0.4, *size)
    for row, (target,) in zip(panels, targets, strict=True):
        data = clouds[target, ""]
        limit, centre = 1.1 * float((data - data.mean(0)).abs().max()), data.mean(0).tolist()
        edges = [np.linspace(middle - limit, middle + limit, 61) for middle in centre]
        for panel, flow in zip(row, flows, strict=True):
            panel.set(xticks=[], yticks=[], title=target)
            if flow and (target, flow) in best:
                value = best[target, flow]["value"]
                panel.set_title(f"{flow}\n{LINES[flow].parameter} = {value:g}", fontsize="small")
            if (target, flow) in clouds:
                x, y = clouds[target, flow].double().numpy().T
                density, *_ = np.histogram2d(x, y, bins=edges)
                top = float(np.quantile(density, 0.99))
                panel.imshow(density.T, origin="lower", cmap="magma", vmax=max(1.0, top))
    figure.suptitle(f"{title}: each flow at its best hyper-parameter should look like the data")
    save_figure(figure, path)
