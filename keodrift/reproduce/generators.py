"""The papers' grids of trained 2D generators (Figs. 2, 6, 7, 8).

A grid is targets × fields × temperatures × seeds. Every cell is a run folder like those of
``keodrift train``, several at once on the cores; what is done is not done again, and what was
interrupted goes on from its checkpoint. The figure and the table come from the folders alone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keodrift.reproduce.cells import run_missing
from keodrift.runs import compose, train

EXPERIMENTS = ("public_run", "paper_text")


@dataclass(frozen=True)
class Cell:
    """One training run of a grid.

    Attributes:
        target: Name of the target.
        label: Name of the field in the figure.
        tau: Temperature of exp(−C/τ), in the unit of the cost.
        seed: Of network and data.
        overrides: What ``keodrift train`` is told.
    """

    target: str
    label: str
    tau: float
    seed: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Folder of the run inside the grid's."""
        return f"{self.target}-{self.label.replace(' ', '_')}-tau{self.tau:g}-seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """A figure of the paper as the runs behind it.

    Attributes:
        title: What the figure shows.
        targets: Names of planar targets, one row of panels each.
        cost: The ground cost: ``"squared"`` for the papers' Gaussian kernel, ``"euclidean"`` for
            their Laplacian one.
        fields: Label and overrides of every line.
        taus: Temperatures, one column of panels each.
        seeds: One run each; lines are their mean, bands their standard deviation.
        experiment: The setting of network, batch and optimiser that all cells share.
        overrides: What all cells share beside it.
    """

    title: str
    targets: tuple[str, ...]
    cost: str = "squared"
    fields: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "one-sided": ("drift=one_sided",),
            "two-sided": ("drift=two_sided",),
            "Sinkhorn 20": ("drift=sinkhorn_20",),
            # Far below the noise of a batch, and cheaper than the default of 1e-3.
            "Sinkhorn": ("drift=sinkhorn", "drift.tol=0.01"),
        }
    )
    taus: tuple[float, ...] = (0.01, 0.05, 0.1)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    experiment: str = "public_run"
    overrides: tuple[str, ...] = ()

    def cells(self) -> Iterator[Cell]:
        """All runs, seed by seed, so that an unfinished grid is one with fewer seeds."""
        for seed in self.seeds:
            for target in self.targets:
                for tau in self.taus:
                    for label, overrides in self.fields.items():
                        own = (
                            *overrides,
                            f"drift.cost={self.cost}",
                            f"drift.tau={tau:g}",
                            f"data={target}",
                            f"seed={seed}",
                        )
                        # An experiment sets the batch of any target, so it comes last.
                        shared = (f"experiment={self.experiment}", *self.overrides)
                        yield Cell(target, label, tau, seed, own + shared)

    def quick(self) -> Grid:
        """The same figure in minutes: one temperature, one seed, few and small steps."""
        short = ("steps=60", "batch=256", "evaluate_every=20", "evaluate_samples=500")
        return replace(self, taus=self.taus[-1:], seeds=(0,), overrides=(*self.overrides, *short))


FIGURES = {
    "fig2": Grid("Gaussian kernel", ("eight_gaussians", "checkerboard")),
    "fig6": Grid("Gaussian kernel", ("two_moons", "spiral")),
    "fig7": Grid("Laplacian kernel", ("eight_gaussians", "checkerboard"), "euclidean"),
    "fig8": Grid("Laplacian kernel", ("two_moons", "spiral"), "euclidean"),
}


def reproduce(
    stem: Path,
    grid: Grid,
    runs: Path,
    *,
    workers: int | None,
    limit: int | None,
    progress: bool,
) -> dict[str, Any]:
    """Trains the generators that are missing, then draws curves and samples."""
    files = {runs / cell.name / "result.json": cell for cell in grid.cells()}
    run_missing(_train, files, name=stem.name, workers=workers, limit=limit, progress=progress)
    report = summarise(grid, runs)
    draw(grid, runs, report, stem.with_suffix(".png"))
    draw_samples(grid, runs, stem.with_name(f"{stem.name}_samples.png"))
    return report


def _train(cell: Cell, result: Path) -> None:
    config = compose("train", cell.overrides)
    config.output, config.progress = str(result.parent), False
    config.resume = (result.parent / "checkpoint.pt").exists()
    train(config)


def summarise(grid: Grid, runs: Path) -> dict[str, Any]:
    """Final W₂² and covered modes over seeds, for every target, field and temperature."""
    found: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    missing = 0
    for cell in grid.cells():
        path = runs / cell.name / "result.json"
        rows = found.setdefault((cell.target, cell.tau, cell.label), [])
        if path.exists():
            rows.append(json.loads(path.read_text()))
        else:
            missing += 1
    rows = []
    for (target, tau, label), results in found.items():
        row: dict[str, Any] = {"target": target, "tau": tau, "field": label, "runs": len(results)}
        if results:
            values = [r["w2_squared"] for r in results]
            row |= {
                "w2_mean": statistics.fmean(values),
                "w2_std": statistics.stdev(values) if len(values) > 1 else 0.0,
                "w2_squared_floor": statistics.fmean(r["w2_squared_floor"] for r in results),
                "seconds": statistics.fmean(r["seconds"] for r in results),
            }
            if "covered" in results[0]:
                row["modes"] = results[0]["modes"]
                for key in ("covered", "stray"):
                    row[key] = statistics.fmean(r[key] for r in results)
        rows.append(row)
    judged = claims(rows) if grid.cost == "squared" else {}  # of the Gaussian kernel alone
    title = f"{grid.title}, {grid.experiment}"
    return {"title": title, "missing": missing, "rows": rows, "claims": judged}


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, bool | None]:
    """The paper's claims about its Gaussian grid, and whether they were seen; None if unknown.

    What it says of 20 sweeps is asked of the converged field too.
    """

    def final(target: str, tau: float, label: str, key: str = "w2_mean") -> float | None:
        for row in rows:
            if (row["target"], row["tau"], row["field"]) == (target, tau, label):
                return row.get(key)
        return None

    def seen(*values: float | None, check: Any) -> bool | None:
        return bool(check(*values)) if values and None not in values else None

    gaussians, taus = "eight_gaussians", sorted({row["tau"] for row in rows})
    judged = {
        "8-Gaussians, τ = 0.1: one-sided collapses (W₂² ≥ 4)": seen(
            final(gaussians, 0.1, "one-sided"), check=lambda w: w >= 4
        )
    }
    for label, name in (("Sinkhorn 20", "20 sweeps"), ("Sinkhorn", "converged")):
        w2 = [final(gaussians, tau, label) for tau in taus]
        judged |= {
            f"8-Gaussians, τ = 0.1: Sinkhorn ({name}) ends below W₂² = 1": seen(
                final(gaussians, 0.1, label), check=lambda w: w < 1
            ),
            f"8-Gaussians, τ = 0.1: Sinkhorn ({name}) covers all 8 modes": seen(
                final(gaussians, 0.1, label, "covered"), check=lambda c: c == 8
            ),
            f"8-Gaussians: Sinkhorn ({name}) stays below W₂² = 1 as τ falls": seen(
                *w2, check=lambda *w: max(w) < 1
            ),
        }
    for label in ("one-sided", "two-sided"):
        judged[f"8-Gaussians: {label} ends worse at τ = 0.01 than at τ = 0.1"] = seen(
            *(final(gaussians, tau, label) for tau in (0.1, 0.01)),
            check=lambda hot, cold: cold > hot,
        )
    for label, name in (("Sinkhorn 20", "20 sweeps"), ("Sinkhorn", "converged")):
        three = f"one-sided, two-sided and Sinkhorn ({name})"
        judged[f"checkerboard, τ = 0.1: {three} end within 0.1 of each other"] = seen(
            *(final("checkerboard", 0.1, one) for one in ("one-sided", "two-sided", label)),
            check=lambda *w: max(w) - min(w) < 0.1,
        )
    return judged


def markdown(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    hours = sum(row["runs"] * row.get("seconds", 0) for row in report["rows"]) / 3600
    lines = [
        f"{report['title']}; {report['missing']} runs are missing, the others took {hours:.1f} h "
        "one after the other.",
        "",
        "| target | τ | field | final W₂² (mean ± std) | real against real | modes | at no mode | "
        "runs | minutes a run |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        begin = f"| {row['target']} | {row['tau']:g} | {row['field']} |"
        if "w2_mean" not in row:
            lines.append(f"{begin} | | | | 0 | |")
            continue
        spread = f" ± {row['w2_std']:.3f}" if row["runs"] > 1 else ""
        modes = "|"
        if "covered" in row:
            modes = f"{row['covered']:.1f} of {row['modes']} | {row['stray']:.0%}"
        lines.append(
            f"{begin} {row['w2_mean']:.3f}{spread} | {row['w2_squared_floor']:.3f} | "
            f"{modes} | {row['runs']} | {row['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def draw(grid: Grid, runs: Path, report: dict[str, Any], path: Path) -> None:
    """Curves of W₂² over steps, mean ± std over seeds, one panel a target and temperature."""
    import numpy as np

    from keodrift.plots import new_figure, save_figure

    columns = len(grid.taus)
    figure, panels = new_figure(4 * columns, 3.2 * len(grid.targets), len(grid.targets), columns)
    for i, target in enumerate(grid.targets):
        for j, tau in enumerate(grid.taus):
            panel = panels[i, j]
            for k, label in enumerate(grid.fields):
                curves = []
                for cell in grid.cells():
                    log = runs / cell.name / "metrics.jsonl"
                    mine = (cell.target, cell.tau, cell.label) == (target, tau, label)
                    if mine and (runs / cell.name / "result.json").exists():
                        rows = [json.loads(line) for line in log.read_text().splitlines()]
                        curves.append(
                            [(r["step"], r["w2_squared"]) for r in rows if "w2_squared" in r]
                        )
                if not curves:
                    continue
                values = np.array(curves)
                steps, mean = values[0, :, 0], values[..., 1].mean(0)
                std = values[..., 1].std(0, ddof=1) if len(values) > 1 else 0.0
                panel.plot(steps, mean, color=f"C{k}", label=label)
                # No lower than the best run: mean - std may be negative, which no log axis shows.
                low = np.maximum(mean - std, values[..., 1].min(0))
                panel.fill_between(steps, low, mean + std, color=f"C{k}", alpha=0.2, lw=0)
            floors = [
                r["w2_squared_floor"]
                for r in report["rows"]
                if (r["target"], r["tau"]) == (target, tau) and "w2_squared_floor" in r
            ]
            if floors:
                panel.axhline(floors[0], color="0.5", ls=":", label="real against real")
            panel.set_yscale("log")
            panel.set_title(f"{target}, τ = {tau:g}", fontsize="medium")
            panel.set_xlabel("training step")
            panel.set_ylabel("$W_2^2$ [length$^2$]")
    panels[0, 0].legend(fontsize="x-small")
    figure.suptitle(f"{report['title']}: lower is better, the dotted line is as good as real data")
    save_figure(figure, path)


def draw_samples(grid: Grid, runs: Path, path: Path) -> None:
    """Final samples of the first seed over the data, one panel a field, target and temperature."""
    import numpy as np

    from keodrift.plots import plot_samples, save_figure

    panels: dict[str, Tensor] = {}
    targets, shown = [], set()
    for cell in grid.cells():
        source = runs / cell.name / "samples.npz"
        if cell.seed == grid.seeds[0] and source.exists():
            shown.add(cell.label)
            with np.load(source) as stored:
                panels[f"{cell.target}, τ = {cell.tau:g}\n{cell.label}"] = torch.from_numpy(
                    stored["generated"]
                )
                targets.append(torch.from_numpy(stored["real"]))
    if panels:
        title = f"{grid.title}, {grid.experiment}: generated points should cover the data"
        figure = plot_samples(panels, targets, title=title, columns=len(shown), size=2.6)
        save_figure(figure, path)
