"""Particle flows over fields and temperatures (Figs. 1, 5): paths, animation, final W₂²."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keodrift.data import sample_target
from keodrift.drifts import Drift, OneSidedDrift, SinkhornDrift, TwoSidedDrift
from keodrift.files import atomic_path
from keodrift.flow import simulate
from keodrift.metrics import wasserstein_squared
from keodrift.plots import animate_flows, plot_flows, save_figure
from keodrift.reproduce.cells import run_missing
from keodrift.temperature import effective_neighbours

CLOSE = 0.01  # W₂² that two flows may differ by and still be as good as each other
FRAMES = 34  # of the animation, at most


def _fields() -> dict[str, Drift]:
    return {
        "one-sided": OneSidedDrift(1.0, mask_self=False),
        "one-sided, mask": OneSidedDrift(1.0, mask_self=True),
        "two-sided": TwoSidedDrift(1.0, mask_self=False),
        "two-sided, mask": TwoSidedDrift(1.0, mask_self=True),
        "Sinkhorn 100": SinkhornDrift(1.0, iterations=201),
        "Sinkhorn": SinkhornDrift(1.0),
    }


@dataclass(frozen=True)
class FlowCell:
    """One particle flow of a grid.

    Attributes:
        label: Name of the field in the figure.
        tau: Temperature of exp(−C/τ), in the unit of the cost.
        drift: The field.
        grid: What all cells share.
    """

    label: str
    tau: float
    drift: Drift
    grid: FlowGrid

    @property
    def name(self) -> str:
        """File of the flow inside the grid's folder."""
        return f"{self.label.replace(', ', '_').replace(' ', '_')}-tau{self.tau:g}"


@dataclass(frozen=True)
class FlowGrid:
    """A figure of particle flows.

    Attributes:
        title: What the figure shows.
        taus: Temperatures, one row of panels each.
        fields: Label and drift of every column; their temperature and cost are set here.
        cost: The ground cost: ``"squared"`` for the papers' Gaussian kernel.
        target: Name of the planar target.
        points: Particles, and data points.
        spread: Standard deviation of the particles at the start, a length.
        step: Euler step.
        steps: Number of Euler steps.
        keep: A position is stored every so many steps.
    """

    title: str
    taus: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    fields: dict[str, Drift] = field(default_factory=_fields, hash=False)
    cost: str = "squared"
    target: str = "eight_gaussians"
    points: int = 100
    spread: float = 0.5
    step: float = 0.1
    steps: int = 500
    keep: int = 5

    def cells(self) -> Iterator[FlowCell]:
        """All flows, temperature by temperature."""
        for tau in self.taus:
            for label, drift in self.fields.items():
                yield FlowCell(label, tau, replace(drift, tau=tau, cost=self.cost), self)

    def quick(self) -> FlowGrid:
        """The same figure in seconds: few points, few steps."""
        return replace(self, points=30, steps=20)

    def clouds(self) -> tuple[Tensor, Tensor, Tensor]:
        """Particles at the start, data, and other data to tell how close real samples are."""
        draw = torch.Generator().manual_seed(0)
        start = self.spread * torch.randn(self.points, 2, generator=draw)
        data, other = (sample_target(self.target, self.points, draw) for _ in range(2))
        return start, data, other


FIGURES = {
    "fig1": FlowGrid("Particle flows at two temperatures", taus=(0.1, 1.0)),
    "fig5": FlowGrid("Particle flows at four temperatures"),
}


def reproduce(
    stem: Path,
    grid: FlowGrid,
    cells: Path,
    *,
    workers: int | None,
    limit: int | None,
    progress: bool,
) -> dict[str, Any]:
    """Runs the flows that are missing, then draws the figure and the animation."""
    files = {cells / f"{cell.name}.npz": cell for cell in grid.cells()}
    run_missing(run, files, name=stem.name, workers=workers, limit=limit, progress=progress)
    report = summarise(grid, cells)
    draw(grid, cells, report, stem)
    return report


def run(cell: FlowCell, path: Path) -> None:
    """Simulates one flow and stores its trajectory with what the table needs."""
    grid = cell.grid
    start, data, _ = grid.clouds()
    flow = simulate(cell.drift, start, data, grid.step, grid.steps, keep=grid.keep)
    neighbours = float(effective_neighbours(cell.drift.fit(flow.final, data)))
    numbers = {
        "w2_squared": wasserstein_squared(flow.final, data),
        "neighbours": neighbours,
        "half_steps": sum(flow.iterations) / max(1, len(flow.iterations)),
    }
    with atomic_path(path) as draft:
        np.savez(
            draft,
            trajectory=flow.trajectory.numpy(),
            times=flow.times.numpy(),
            numbers=json.dumps(numbers),
        )


def summarise(grid: FlowGrid, cells: Path) -> dict[str, Any]:
    """Final W₂² and effective neighbours of every flow, and the paper's claim."""
    rows = []
    for cell in grid.cells():
        path = cells / f"{cell.name}.npz"
        row: dict[str, Any] = {"tau": cell.tau, "field": cell.label}
        if path.exists():
            with np.load(path) as stored:
                row |= json.loads(str(stored["numbers"]))
        rows.append(row)
    _, data, other = grid.clouds()
    return {
        "title": grid.title,
        "target": grid.target,
        "points": grid.points,
        "step": grid.step,
        "steps": grid.steps,
        "floor": wasserstein_squared(other, data),
        "missing": sum("w2_squared" not in row for row in rows),
        "rows": rows,
        "claims": claims(rows),
    }


def claims(rows: list[dict[str, Any]]) -> dict[str, bool | None]:
    """The paper's claim about its flows at each temperature; None where a flow is missing."""
    seen: dict[str, bool | None] = {}
    for tau in dict.fromkeys(row["tau"] for row in rows):
        final = {row["field"]: row.get("w2_squared") for row in rows if row["tau"] == tau}
        others = [w2 for label, w2 in final.items() if "Sinkhorn" not in label]
        known = [w2 for w2 in (*others, final.get("Sinkhorn 100")) if w2 is not None]
        claim = f"τ = {tau:g}: Sinkhorn (100 sweeps) ends as close as any other, to {CLOSE:g}"
        complete = len(known) == len(others) + 1
        seen[claim] = known[-1] <= min(known[:-1]) + CLOSE if complete else None
    return seen


def markdown(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    flow = f"{report['steps']} Euler steps of {report['step']:g}, {report['points']} particles"
    lines = [
        f"{report['title']}: {flow}, target {report['target']}; another {report['points']} real "
        f"points score W₂² = {report['floor']:.3f}; {report['missing']} flows are missing.",
        "",
        "| τ | field | final W₂² | effective neighbours | half-steps a step |",
        "|---:|---|---:|---:|---:|",
    ]
    for row in report["rows"]:
        begin = f"| {row['tau']:g} | {row['field']} |"
        if "w2_squared" not in row:
            lines.append(f"{begin} | | |")
            continue
        half_steps = f"{row['half_steps']:.1f}" if row["half_steps"] > 1 else ""
        lines.append(f"{begin} {row['w2_squared']:.4f} | {row['neighbours']:.1f} | {half_steps} |")
    return "\n".join(lines)


def draw(grid: FlowGrid, cells: Path, report: dict[str, Any], path: Path) -> None:
    """Paths of all flows as ``PATH.png``, and the same moving as ``PATH.gif``."""
    rows = {(row["tau"], row["field"]): row for row in report["rows"]}
    still, moving, times = {}, {}, None
    for cell in grid.cells():
        source = cells / f"{cell.name}.npz"
        if not source.exists():
            continue
        with np.load(source) as stored:
            trajectory = torch.from_numpy(stored["trajectory"])
            times = stored["times"]
        row = rows[cell.tau, cell.label]
        name = f"{cell.label}, τ = {cell.tau:g}"
        still[f"{name}\n$W_2^2$ = {row['w2_squared']:.3f}, {row['neighbours']:.1f} neighbours"] = (
            trajectory
        )
        moving[name] = trajectory
    if times is None:
        return
    _, data, _ = grid.clouds()
    columns = len(grid.fields)
    title = (
        f"{grid.title}: paths should end on the data; a second real sample scores "
        f"$W_2^2$ = {report['floor']:.3f} [length$^2$]"
    )
    save_figure(plot_flows(still, data, title=title, columns=columns), path.with_suffix(".png"))
    every = -(-len(times) // FRAMES)
    animate_flows(
        path.with_suffix(".gif"),
        {name: trajectory[::every] for name, trajectory in moving.items()},
        times[::every].tolist(),
        data,
        title=f"{grid.title}: particles should end on the data",
        columns=columns,
        dpi=45,
    )
