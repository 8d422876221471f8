"""Particle flows over fields and temperatures (Figs. 1, 5): paths, animation, final W₂².

Fig. 1's caption says 30 sweeps, the text 100, and beside it the kernel is exp(−‖x−y‖/τ), elsewhere
exp(−‖x−y‖²/τ). Here it is 100 sweeps and exp(−‖x−y‖²/τ).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keodrift.data import sample_target
from keodrift.drifts import OneSidedDrift, SinkhornDrift, SoftmaxDrift, TwoSidedDrift
from keodrift.files import atomic_path, reading
from keodrift.flow import simulate
from keodrift.metrics import wasserstein_squared
from keodrift.plots import animate_flows, plot_flows, save_figure
from keodrift.studies import Claims, Row, Study, markdown_table
from keodrift.temperature import effective_neighbours

CLOSE = 0.01  # W₂² that two flows may differ by and still be as good as each other
FRAMES = 34  # of the animation, at most


def _fields() -> dict[str, SoftmaxDrift]:
    return {
        "one-sided": OneSidedDrift(1.0, mask_self=False),
        "one-sided, mask": OneSidedDrift(1.0, mask_self=True),
        "two-sided": TwoSidedDrift(1.0, mask_self=False),
        "two-sided, mask": TwoSidedDrift(1.0, mask_self=True),
        "Sinkhorn 100": SinkhornDrift(1.0, half_steps=201),
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
    drift: SoftmaxDrift
    grid: FlowGrid


@dataclass(frozen=True)
class FlowGrid(Study[FlowCell]):
    """A figure of particle flows.

    Attributes:
        title: What the figure shows.
        taus: Temperatures, one row of panels each.
        fields: Label and drift of every column; their temperature and cost are set here.
        cost: The ground cost: ``"squared"`` for the papers' Gaussian kernel.
        target: Name of the planar target.
        points: Particles, and data points.
        spread: Standard deviation of the particles at the start, a length.
        step_size: Of Euler's method.
        steps: Number of Euler steps.
        keep: A position is stored every so many steps.
    """

    title: str
    taus: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    fields: dict[str, SoftmaxDrift] = field(default_factory=_fields, hash=False)
    cost: str = "squared"
    target: str = "eight_gaussians"
    points: int = 100
    spread: float = 0.5
    step_size: float = 0.1
    steps: int = 500
    keep: int = 5

    def cells(self) -> dict[str, FlowCell]:
        """All flows, temperature by temperature."""
        return {
            f"{label.replace(', ', '_').replace(' ', '_')}-tau{tau:g}.npz": FlowCell(
                label, tau, replace(drift, tau=tau, cost=self.cost), self
            )
            for tau in self.taus
            for label, drift in self.fields.items()
        }

    def quick(self) -> FlowGrid:
        """The same figure in seconds: few points, few steps."""
        return replace(self, points=30, steps=20)

    def clouds(self) -> tuple[Tensor, Tensor, Tensor]:
        """Particles at the start, data, and other data to tell how close real samples are."""
        draw = torch.Generator().manual_seed(0)
        start = self.spread * torch.randn(self.points, 2, generator=draw)
        data, other = (sample_target(self.target, self.points, draw) for _ in range(2))
        return start, data, other

    def floor(self) -> float:
        """W₂² between two samples of the data."""
        _, data, other = self.clouds()
        return wasserstein_squared(other, data)

    @staticmethod
    def work(cell: FlowCell, path: Path) -> None:
        """Simulates one flow and stores its trajectory with what the table needs."""
        grid = cell.grid
        start, data, _ = grid.clouds()
        flow = simulate(cell.drift, start, data, grid.step_size, grid.steps, keep=grid.keep)
        numbers = {
            "w2_squared": wasserstein_squared(flow.final, data),
            "neighbours": float(effective_neighbours(cell.drift.fit(flow.final, data))),
            "half_steps": sum(flow.half_steps) / max(1, len(flow.half_steps)),
        }
        with atomic_path(path) as draft:
            np.savez(
                draft,
                trajectory=flow.trajectory.numpy(),
                times=flow.times.numpy(),
                numbers=json.dumps(numbers),
            )

    def rows(self, folder: Path) -> list[Row]:
        """Final W₂² and effective neighbours of every flow."""
        rows: dict[str, Row] = {
            name: {"tau": cell.tau, "field": cell.label} for name, cell in self.cells().items()
        }
        for _, path in self.finished(folder):
            with reading(path), np.load(path) as stored:
                rows[path.name] |= json.loads(str(stored["numbers"]))
        return list(rows.values())

    def claims(self, rows: list[Row]) -> Claims:
        """The paper's claim about its flows at each temperature."""
        seen: Claims = {}
        for tau in dict.fromkeys(row["tau"] for row in rows):
            final = {row["field"]: row.get("w2_squared") for row in rows if row["tau"] == tau}
            others = [w2 for label, w2 in final.items() if "Sinkhorn" not in label]
            known = [w2 for w2 in (*others, final.get("Sinkhorn 100")) if w2 is not None]
            claim = f"τ = {tau:g}: Sinkhorn (100 sweeps) ends as close as the one- and two-sided "
            claim += f"fields, to {CLOSE:g}"
            complete = len(known) == len(others) + 1
            seen[claim] = known[-1] <= min(known[:-1]) + CLOSE if complete else None
        return seen

    def table(self, rows: list[Row]) -> str:
        """One line a flow."""
        missing = sum("w2_squared" not in row for row in rows)
        head = (
            f"{self.title}: {self.steps} Euler steps of {self.step_size:g}, {self.points} "
            f"particles, target {self.target}; another {self.points} real points score "
            f"W₂² = {self.floor():.3f}; {missing} flows are missing."
        )
        lines = []
        for row in rows:
            numbers = ["", "", ""]
            if "w2_squared" in row:
                half_steps = f"{row['half_steps']:.1f}" if row["half_steps"] > 1 else ""
                numbers = [f"{row['w2_squared']:.4f}", f"{row['neighbours']:.1f}", half_steps]
            lines.append([f"{row['tau']:g}", row["field"], *numbers])
        header = "τ:|field|final W₂²:|effective neighbours:|half-steps a step:"
        return f"{head}\n\n{markdown_table(header, lines)}"

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        """Paths of all flows as ``STEM.png``, and the same moving as ``STEM.gif``."""
        numbers = {(row["tau"], row["field"]): row for row in rows}
        still, moving, times = {}, {}, None
        for cell, path in self.finished(folder):
            with reading(path), np.load(path) as stored:
                trajectory, times = torch.from_numpy(stored["trajectory"]), stored["times"]
            row, name = numbers[cell.tau, cell.label], f"{cell.label}, τ = {cell.tau:g}"
            scores = f"$W_2^2$ = {row['w2_squared']:.3f}, {row['neighbours']:.1f} neighbours"
            still[f"{name}\n{scores}"] = moving[name] = trajectory
        if times is None:
            return
        _, data, _ = self.clouds()
        columns = len(self.fields)
        title = (
            f"{self.title}: paths should end on the data; a second real sample scores "
            f"$W_2^2$ = {self.floor():.3f} [length$^2$]"
        )
        save_figure(plot_flows(still, data, title=title, columns=columns), stem.with_suffix(".png"))
        every = -(-len(times) // FRAMES)
        animate_flows(
            stem.with_suffix(".gif"),
            {name: trajectory[::every] for name, trajectory in moving.items()},
            times[::every].tolist(),
            data,
            title=f"{self.title}: particles should end on the data",
            columns=columns,
            dpi=45,
        )


FIGURES = {
    "fig1": FlowGrid("Particle flows at two temperatures", taus=(0.1, 1.0)),
    "fig5": FlowGrid("Particle flows at four temperatures"),
}
