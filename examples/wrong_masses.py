"""Modes with the wrong masses: which field mends them? python examples/wrong_masses.py

Particles, or a trained network, begin with the right modes but the wrong mass in each: 90 % on
one of two, or 65 % on one of eight. The data give every mode the same. What must happen is that
mass crosses the gaps, and what is measured is how much of it is still wrong at the end: the total
variation between masses, 0 when right.

    python examples/wrong_masses.py parts=[particles] size=1000
    python examples/wrong_masses.py quick=true

Every cell is kept in output/cells; run again, the script does what is missing. Figure, table and
numbers land in output.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import keodrift as kd
from keodrift.files import atomic_path, write_json
from keodrift.flow import simulate
from keodrift.metrics import mode_coverage, wasserstein_squared
from keodrift.networks import MLP, draw_noise, sample
from keodrift.plots import new_figure, save_figure
from keodrift.settings import run_script
from keodrift.studies import Row, Study, markdown_table, run_missing, run_study
from keodrift.training import Batch, Objective, Trainer

PARTS = ["particles", "network"]
SETTINGS = {
    "parts": PARTS,
    "problems": [[2, 2], [8, 2], [2, 32]],  # modes, dimension
    "size": 500,  # particles
    "large": 4000,  # the same for the fields that are fast enough, at one temperature
    "large_taus": [0.1],
    "taus": [1.0, 0.3, 0.1, 0.03],
    "fields": ["one-sided", "20 sweeps", "100 sweeps", "converged"],
    "steps": 200,
    "step_size": 0.1,
    "batches": [256, 1024],  # of the network's training
    "train_taus": [0.3, 0.1],
    "train_fields": ["one-sided", "20 sweeps", "converged"],
    "train_steps": 600,
    "judged": 2000,  # points of the network
    "workers": 2,
    "output": "outputs/wrong_masses",
}
QUICK = {
    "problems": [[2, 2]],
    "size": 60,
    "large": 90,
    "taus": [0.1],
    "steps": 40,
    "step_size": 0.5,
    "batches": [64],
    "train_taus": [0.1],
    "train_steps": 5,
    "judged": 200,
}
STD = 0.1  # of every mode, a length


@dataclass(frozen=True)
class Cell:
    part: str
    modes: int
    d: int
    size: int
    tau: float
    field: str
    steps: int
    step_size: float
    judged: int = 2000

    @property
    def name(self) -> str:
        field = self.field.replace(" ", "_")
        shape = f"k{self.modes}-d{self.d}-n{self.size}-tau{self.tau:g}"
        return f"{self.part}-{shape}-{field}-{self.steps}x{self.step_size:g}.json"


def centres(modes: int, d: int) -> torch.Tensor:
    """Two modes at ±2, or more on a circle of radius 2, in the first two of d dimensions."""
    angle = 2 * torch.pi * torch.arange(modes) / modes
    out = torch.zeros(modes, d)
    out[:, 0], out[:, 1] = 2 * angle.cos(), 2 * angle.sin()
    return out


def wrong(modes: int) -> torch.Tensor:
    """The masses at the start: most of it on the first mode."""
    first = 0.9 if modes == 2 else 0.65
    return torch.tensor([first] + [(1 - first) / (modes - 1)] * (modes - 1))


def draw(masses: torch.Tensor, size: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """Exactly ``masses`` of the points at each mode, as far as ``size`` divides."""
    counts = (masses * size).round().long()
    counts[0] += size - counts.sum()
    centre = centres(len(masses), d).repeat_interleave(counts, 0)
    return centre + STD * torch.randn(size, d, generator=generator)


def drift_of(cell: Cell):
    if cell.field == "one-sided":
        return kd.OneSidedDrift(cell.tau, cost="squared")
    if cell.field == "converged":
        return kd.SinkhornDrift(cell.tau, cost="squared", tol=1e-3)
    sweeps = int(cell.field.split()[0])
    return kd.SinkhornDrift(cell.tau, cost="squared", half_steps=2 * sweeps + 1)


def judge(points: torch.Tensor, modes: int, real: torch.Tensor) -> Row:
    """Mass in the wrong place, mass at no mode, and W₂² to the data."""
    d = points.shape[1]
    radius = min(4 * STD * d**0.5, 0.75)
    found = mode_coverage(points, centres(modes, d), radius)
    return {
        "wrong": found.wrong_mass,
        "stray": found.stray,
        "w2_squared": wasserstein_squared(points, real, cap=4000),
    }


def particles(cell: Cell) -> Row:
    random = torch.Generator().manual_seed(0)
    x = draw(wrong(cell.modes), cell.size, cell.d, random)
    y = draw(torch.full((cell.modes,), 1 / cell.modes), cell.size, cell.d, random)
    flow = simulate(drift_of(cell), x, y, cell.step_size, cell.steps)
    half_steps = sum(flow.half_steps) / max(1, len(flow.half_steps))
    return judge(flow.final, cell.modes, y) | {"half_steps": half_steps}


def train(
    network: MLP, masses: torch.Tensor, drift, steps: int, size: int, seed: int
) -> torch.nn.Module:
    """Trains with fresh batches; returns the averaged network."""

    def batch(random: torch.Generator) -> Batch:
        pick = torch.multinomial(masses, size, replacement=True, generator=random)
        noise = draw_noise(network, size, random)
        data = centres(len(masses), network.dim)[pick]
        return Batch((noise,), data + STD * torch.randn(size, network.dim, generator=random))

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    random = torch.Generator().manual_seed(seed)
    trainer = Trainer(network, batch, Objective(drift), optimizer, random, ema=0.98)
    trainer.run(steps)
    return trainer.average


def beginning(spec: tuple[int, int], path: Path) -> None:
    """A network that has learned the wrong masses, the same for all fields."""
    modes, steps = spec
    network = MLP(width=128, hidden=3)
    drift = kd.SinkhornDrift(0.1, cost="squared", tol=1e-3)
    average = train(network, wrong(modes), drift, steps, 1024, 0)
    with atomic_path(path) as draft:
        torch.save(average.state_dict(), draft)


def trained(cell: Cell, folder: Path) -> Row:
    """Trains that network on, with fresh batches of the right masses."""
    even = torch.full((cell.modes,), 1 / cell.modes)
    real = draw(even, cell.judged, 2, torch.Generator().manual_seed(1))
    network = MLP(width=128, hidden=3)
    network.load_state_dict(torch.load(folder / start_of(cell.modes, cell.steps)))

    def look(model: torch.nn.Module) -> Row:
        points = sample(model, cell.judged, torch.Generator().manual_seed(2))
        return judge(points, cell.modes, real)

    before = look(network)
    average = train(network, even, drift_of(cell), cell.steps, cell.size, 3)
    return look(average) | {"before": before}


def start_of(modes: int, steps: int) -> str:
    return f"start-k{modes}-{steps}.pt"


def title_of(row: Row) -> str:
    if row["part"] == "network":
        return f"{row['modes']} modes, a network, batch {row['size']}"
    return f"{row['modes']} modes, d = {row['d']}, {row['size']} particles"


@dataclass(frozen=True)
class WrongMasses(Study[Cell]):
    config: dict
    title: str = "Modes with the wrong masses"

    def cells(self) -> dict[str, Cell]:
        config, cells = self.config, []
        if "particles" in config.parts:
            for modes, d in config.problems:
                for size, taus, fields in (
                    (config.size, config.taus, config.fields),
                    (config.large, config.large_taus, ("one-sided", "converged")),
                ):
                    shared = ("particles", modes, d, size)
                    cells += [
                        Cell(*shared, tau, field, config.steps, config.step_size)
                        for tau in taus
                        for field in fields
                    ]
        if "network" in config.parts:
            cells += [
                Cell("network", modes, 2, size, tau, field, config.train_steps, 1.0, config.judged)
                for modes in dict.fromkeys(modes for modes, d in config.problems if d == 2)
                for size in config.batches
                for tau in config.train_taus
                for field in config.train_fields
            ]
        return {cell.name: cell for cell in cells}

    @staticmethod
    def work(cell: Cell, path: Path) -> None:
        out = particles(cell) if cell.part == "particles" else trained(cell, path.parent)
        write_json(path, asdict(cell) | out)

    def table(self, rows: list[Row]) -> str:
        lines = []
        for row in rows:
            steps = f"{row['half_steps']:.1f}" if row.get("half_steps", 0) > 1 else ""
            numbers = (
                f"{row['wrong']:.3f}",
                f"{row['stray']:.3f}",
                f"{row['w2_squared']:.4f}",
                steps,
            )
            lines.append((title_of(row), f"{row['tau']:g}", row["field"], *numbers))
        header = "problem|τ:|field|mass in the wrong place:|at no mode:|W₂²:|half-steps a step:"
        return markdown_table(header, lines)

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        for part, shown in (("particles", ["wrong"]), ("network", ["wrong", "stray"])):
            mine = [row for row in rows if row["part"] == part]
            if mine:
                save_figure(figure_of(mine, shown), stem.with_name(f"{stem.name}_{part}.png"))


WORDS = {"wrong": "mass in the wrong place", "stray": "mass at no mode"}


def figure_of(rows: list[Row], shown: list[str]):
    """One column a problem, one row a quantity, over τ."""

    def panel_of(row: Row) -> str:
        if row["part"] == "network":
            return title_of(row)
        return f"{row['modes']} modes, d = {row['d']}, particles"

    groups = list(dict.fromkeys(panel_of(row) for row in rows))
    figure, axes = new_figure(4 * len(groups), 3.4 * len(shown), len(shown), len(groups))
    fields = list(dict.fromkeys(row["field"] for row in rows))
    for i, j in itertools.product(range(len(shown)), range(len(groups))):
        panel, key = axes[i, j], shown[i]
        mine = [row for row in rows if panel_of(row) == groups[j]]
        sizes = sorted({row["size"] for row in mine})
        for field, size in itertools.product(fields, sizes):
            line = sorted(
                (r["tau"], r[key]) for r in mine if (r["field"], r["size"]) == (field, size)
            )
            if line:
                style = "o-" if size == sizes[0] else "*"
                label = f"{field}, N = {size}" if len(sizes) > 1 else field
                color = f"C{fields.index(field)}"
                panel.plot(
                    *zip(*line, strict=True), style, ms=8, color=color, alpha=0.7, label=label
                )
        if key == "wrong":
            start = (wrong(mine[0]["modes"]) - 1 / mine[0]["modes"]).abs().sum() / 2
            panel.axhline(float(start), color="0.5", ls=":", label="at the start")
        panel.set_xscale("log")
        panel.set_ylim(bottom=-0.02)
        panel.set(xlabel="temperature τ of exp(−‖x−y‖²/τ) [length²]", ylabel=WORDS[key])
        panel.set_title(groups[j], fontsize="medium")
    axes[0, 0].legend(fontsize="x-small")
    figure.suptitle("Mass that must cross a gap: 0 is right, the dotted line is where all began")
    return figure


def main(config) -> None:
    folder = Path(config.output)
    study = WrongMasses(config)
    starts = {
        folder / "cells" / start_of(cell.modes, cell.steps): (cell.modes, cell.steps)
        for cell in study.cells().values()
        if cell.part == "network"
    }
    run_missing(beginning, starts, name="beginnings", workers=config.workers)
    report = run_study(study, folder / "wrong_masses", folder / "cells", workers=config.workers)
    print(report.page)


if __name__ == "__main__":
    run_script(main, SETTINGS, quick=QUICK, choices={"parts": PARTS})
