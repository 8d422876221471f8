"""The papers' grids of trained 2D networks (Figs. 2, 6, 7, 8).

A grid is targets × fields × temperatures × seeds. Every cell is a run folder like those of
``keodrift train``, and what was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keodrift.checks import check_choice
from keodrift.configuration import compose
from keodrift.errors import OptionError
from keodrift.files import read_json, reading
from keodrift.plots import new_figure, plot_samples, save_figure
from keodrift.runs import train
from keodrift.studies import Claims, Row, Study, markdown_table
from keodrift.training import checkpoints

EXPERIMENTS = ("public_run", "paper_text")
CONVERGED = "Sinkhorn, converged to 1e-2"  # far below the noise of a batch, cheaper than 1e-3
COLLAPSED = 6.5  # W₂² of eight Gaussians; the paper's collapsed run ends at 7 to 8


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


def _fields() -> dict[str, tuple[str, tuple[str, ...]]]:
    return {
        "one-sided": ("one-sided", ("drift=one_sided",)),
        "two-sided": ("two-sided", ("drift=two_sided",)),
        "Sinkhorn 20": ("Sinkhorn_20", ("drift=sinkhorn_20",)),
        CONVERGED: ("Sinkhorn", ("drift=sinkhorn", "drift.tol=0.01")),
        "recommended": (
            "recommended",
            ("drift=relaxed", "drift.tol=0.01", "negatives=fresh", "balanced=true", "ema=0.99"),
        ),
    }


@dataclass(frozen=True)
class NetworkGrid(Study[Cell]):
    """A figure of the paper as the runs behind it.

    Attributes:
        title: What the figure shows.
        targets: Names of planar targets, one row of panels each.
        cost: The ground cost: ``"squared"`` for the papers' Gaussian kernel, ``"euclidean"`` for
            their Laplacian one.
        fields: Label of every line, its word in the names of folders, and its overrides.
        taus: Temperatures, one column of panels each.
        seeds: One run each; lines are their mean, bands their standard deviation.
        experiment: The setting of network, batch and optimiser that all cells share.
        overrides: What all cells share beside it.
    """

    title: str
    targets: tuple[str, ...]
    cost: str = "squared"
    fields: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=_fields)
    taus: tuple[float, ...] = (0.01, 0.05, 0.1)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    experiment: str = "public_run"
    overrides: tuple[str, ...] = ()

    def cells(self) -> dict[str, Cell]:
        """All runs, seed by seed, so that an unfinished grid is one with fewer seeds."""
        cells = {}
        for seed in self.seeds:
            for target in self.targets:
                for tau in self.taus:
                    for label, (word, overrides) in self.fields.items():
                        own = (
                            *overrides,
                            f"drift.cost={self.cost}",
                            f"drift.tau={tau:g}",
                            f"data={target}",
                            f"seed={seed}",
                        )
                        # An experiment sets the batch of any target, so it comes last.
                        shared = (f"experiment={self.experiment}", *self.overrides)
                        folder = f"{target}-{word}-tau{tau:g}-seed{seed}"
                        cell = Cell(target, label, tau, seed, own + shared)
                        cells[f"{folder}/result.json"] = cell
        return cells

    def only(self, words: Sequence[str]) -> NetworkGrid:
        """The figure with some of its lines, by their words in the names of folders.

        Raises:
            OptionError: A word is none of them, or there is none.
        """
        known = {word: label for label, (word, _) in self.fields.items()}
        if not words or isinstance(words, str):
            raise OptionError("fields", repr(words), f"a list of some of {', '.join(known)}")
        for word in words:
            check_choice("fields", word, tuple(known))
        chosen = {label: own for label, own in self.fields.items() if own[0] in words}
        return replace(self, fields=chosen)

    def quick(self) -> NetworkGrid:
        """The same figure in minutes: one temperature, one seed, few and small steps."""
        short = ("steps=60", "batch=256", "evaluate_every=20", "evaluate_samples=500")
        return replace(self, taus=self.taus[-1:], seeds=(0,), overrides=(*self.overrides, *short))

    @staticmethod
    def work(cell: Cell, path: Path) -> None:
        """Trains one network, from its checkpoint if there is one."""
        config = compose("train", cell.overrides)
        config.output, config.progress = str(path.parent), False
        config.resume = bool(checkpoints(path.parent))
        train(config)

    def rows(self, folder: Path) -> list[Row]:
        """Final W₂² and covered modes over seeds, for every target, field and temperature."""
        found: dict[tuple[str, float, str], list[Row]] = {
            (cell.target, cell.tau, cell.label): [] for cell in self.cells().values()
        }
        for cell, path in self.finished(folder):
            found[cell.target, cell.tau, cell.label].append(read_json(path))
        rows = []
        for (target, tau, label), results in found.items():
            row: Row = {"target": target, "tau": tau, "field": label, "runs": len(results)}
            if results:
                values = [r["w2_squared"] for r in results]
                row |= {
                    "w2_squared_mean": statistics.fmean(values),
                    "w2_squared_std": statistics.stdev(values) if len(values) > 1 else 0.0,
                    "w2_squared_floor": statistics.fmean(r["w2_squared_floor"] for r in results),
                    "seconds": statistics.fmean(r["seconds"] for r in results),
                }
                if "covered" in results[0]:
                    row["modes"] = results[0]["modes"]
                    for key in ("covered", "stray"):
                        row[key] = statistics.fmean(r[key] for r in results)
            rows.append(row)
        return rows

    def claims(self, rows: list[Row]) -> Claims:
        """The paper's claims about its Gaussian grid; of the Laplacian one it makes none.

        What it says of 20 sweeps is asked of the converged field too. Where lines were left out,
        only what can be judged without them.
        """
        judged = _gaussian_claims(rows) if self.cost == "squared" else {}
        if self.fields.keys() >= _fields().keys():
            return judged
        return {claim: seen for claim, seen in judged.items() if seen is not None}

    def table(self, rows: list[Row]) -> str:
        """One line a target, temperature and field."""
        hours = sum(row["runs"] * row.get("seconds", 0) for row in rows) / 3600
        missing = len(self.cells()) - sum(row["runs"] for row in rows)
        head = (
            f"{self.title}, {self.experiment}; {missing} runs are missing, the others took "
            f"{hours:.1f} h one after the other."
        )
        lines = []
        for row in rows:
            w2 = floor = modes = stray = minutes = ""
            if row["runs"]:
                spread = f" ± {row['w2_squared_std']:.3f}" if row["runs"] > 1 else ""
                w2, floor = (
                    f"{row['w2_squared_mean']:.3f}{spread}",
                    f"{row['w2_squared_floor']:.3f}",
                )
                minutes = f"{row['seconds'] / 60:.1f}"
            if "covered" in row:
                modes, stray = f"{row['covered']:.1f} of {row['modes']}", f"{row['stray']:.0%}"
            begin = (row["target"], f"{row['tau']:g}", row["field"])
            lines.append((*begin, w2, floor, modes, stray, row["runs"], minutes))
        header = (
            "target|τ:|field|final W₂² (mean ± std):|real against real:|modes:|at no mode:|"
            "runs:|minutes a run:"
        )
        return f"{head}\n\n{markdown_table(header, lines)}"

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        """Curves as ``STEM.png``, final samples as ``STEM_samples.png``."""
        self._draw_curves(rows, folder, stem.with_suffix(".png"))
        self._draw_samples(folder, stem.with_name(f"{stem.name}_samples.png"))

    def _draw_curves(self, rows: list[Row], folder: Path, path: Path) -> None:
        """W₂² over steps, mean ± std over seeds, one panel a target and temperature."""
        curves: dict[tuple[str, float, str], list[list[tuple[int, float]]]] = {}
        for cell, result in self.finished(folder):
            log = result.with_name("metrics.jsonl")
            with reading(log):
                looks = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            mine = curves.setdefault((cell.target, cell.tau, cell.label), [])
            mine.append(
                [(look["step"], look["w2_squared"]) for look in looks if "w2_squared" in look]
            )
        columns = len(self.taus)
        height = 3.2 * len(self.targets)
        figure, panels = new_figure(4 * columns, height, len(self.targets), columns)
        for i, target in enumerate(self.targets):
            for j, tau in enumerate(self.taus):
                panel = panels[i, j]
                for k, label in enumerate(self.fields):
                    if (target, tau, label) not in curves:
                        continue
                    values = np.array(curves[target, tau, label])
                    steps, mean = values[0, :, 0], values[..., 1].mean(0)
                    std = values[..., 1].std(0, ddof=1) if len(values) > 1 else 0.0
                    panel.plot(steps, mean, color=f"C{k}", label=label)
                    # No lower than the best run: a log axis does not show what is below zero.
                    low = np.maximum(mean - std, values[..., 1].min(0))
                    panel.fill_between(steps, low, mean + std, color=f"C{k}", alpha=0.2, lw=0)
                floors = [
                    row["w2_squared_floor"]
                    for row in rows
                    if (row["target"], row["tau"]) == (target, tau) and "w2_squared_floor" in row
                ]
                if floors:
                    panel.axhline(floors[0], color="0.5", ls=":", label="real against real")
                panel.set_yscale("log")
                panel.set_title(f"{target}, τ = {tau:g}", fontsize="medium")
                panel.set_xlabel("training step")
                panel.set_ylabel("$W_2^2$ [length$^2$]")
        drawn = [panel for panel in panels.flat if panel.lines]
        if drawn:
            drawn[0].legend(fontsize="x-small")
        words = "lower is better, the dotted line is as good as real data"
        figure.suptitle(f"{self.title}, {self.experiment}: {words}")
        save_figure(figure, path)

    def _draw_samples(self, folder: Path, path: Path) -> None:
        """Samples of the first seed over the data, one panel a field, target and temperature."""
        panels: dict[str, Tensor] = {}
        targets, shown = [], set()
        for cell, result in self.finished(folder):
            samples = result.with_name("samples.npz")
            if cell.seed == self.seeds[0] and samples.exists():
                shown.add(cell.label)
                with reading(samples), np.load(samples) as stored:
                    generated, real = map(torch.from_numpy, (stored["generated"], stored["real"]))
                panels[f"{cell.target}, τ = {cell.tau:g}\n{cell.label}"] = generated
                targets.append(real)
        if panels:
            title = f"{self.title}, {self.experiment}: generated points should cover the data"
            figure = plot_samples(panels, targets, title=title, columns=len(shown), size=2.6)
            save_figure(figure, path)


FIGURES = {
    "fig2": NetworkGrid("Gaussian kernel", ("eight_gaussians", "checkerboard")),
    "fig6": NetworkGrid("Gaussian kernel", ("two_moons", "spiral")),
    "fig7": NetworkGrid("Laplacian kernel", ("eight_gaussians", "checkerboard"), "euclidean"),
    "fig8": NetworkGrid("Laplacian kernel", ("two_moons", "spiral"), "euclidean"),
}


def _gaussian_claims(rows: list[Row]) -> Claims:
    numbers = {(row["target"], row["tau"], row["field"]): row for row in rows}
    gaussians, taus = "eight_gaussians", sorted({row["tau"] for row in rows})

    def final(target: str, tau: float, label: str, key: str = "w2_squared_mean") -> float | None:
        return numbers.get((target, tau, label), {}).get(key)

    def seen(*values: float | None, check: Callable[..., Any]) -> bool | None:
        return None if None in values else bool(check(*values))

    judged: Claims = {
        "8-Gaussians, τ = 0.1: one-sided collapses (W₂² ≥ 6.5; the paper has 7 to 8)": seen(
            final(gaussians, 0.1, "one-sided"), check=lambda w2: w2 >= COLLAPSED
        )
    }
    sinkhorn = {"Sinkhorn 20": "20 sweeps", CONVERGED: "converged to 1e-2"}
    for label, name in sinkhorn.items():
        w2 = [final(gaussians, tau, label) for tau in taus]
        judged |= {
            f"8-Gaussians, τ = 0.1: Sinkhorn ({name}) ends below W₂² = 1": seen(
                final(gaussians, 0.1, label), check=lambda w2: w2 < 1
            ),
            f"8-Gaussians, τ = 0.1: Sinkhorn ({name}) covers all 8 modes": seen(
                final(gaussians, 0.1, label, "covered"), check=lambda covered: covered == 8
            ),
            f"8-Gaussians: Sinkhorn ({name}) stays below W₂² = 1 as τ falls": (
                seen(*w2, check=lambda *w2: max(w2) < 1) if len(taus) > 1 else None
            ),
        }
    for label in ("one-sided", "two-sided"):
        judged[f"8-Gaussians: {label} ends worse at τ = 0.01 than at τ = 0.1"] = seen(
            *(final(gaussians, tau, label) for tau in (0.1, 0.01)),
            check=lambda hot, cold: cold > hot,
        )
    for label, name in sinkhorn.items():
        claim = (
            f"checkerboard, τ = 0.1: one-sided, two-sided and Sinkhorn ({name}) end within twice "
            "the floor (real against real) of each other"
        )
        three = ("one-sided", "two-sided", label)
        judged[claim] = seen(
            *(final("checkerboard", 0.1, one) for one in three),
            *(final("checkerboard", 0.1, one, "w2_squared_floor") for one in three),
            check=lambda *w: max(w[:3]) - min(w[:3]) <= 2 * min(w[3:]),
        )
    return judged
