"""Where does a model come to rest? python examples/equilibrium.py

A particle that repels itself sees itself at distance 0, and no datum so near. So the field of a
batch pulls inward where model and data are one law, and a network comes to rest with less variance
than the data have. Here the model is the data scaled by s about their mean: the mean radial drift
⟨x − μ, V⟩/⟨x − μ, x − μ⟩ at s = 1 would be 0, and the variance ratio s² at which it is 0 is where a
network would stop. Larger batches shrink less; other draws in the particles' place do not shrink.

    python examples/equilibrium.py spaces=[gaussian] sizes=[32,256]
    python examples/equilibrium.py mnist=mnist.npz   # arrays images, labels
    python examples/equilibrium.py quick=true

Every cell is kept in output/cells; run again, the script does what is missing. Figure, table and
numbers land in output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq
from sklearn.decomposition import PCA
from torch import Tensor

import keodrift as kd
from keodrift.data import load_digits_latents
from keodrift.files import write_json
from keodrift.gaussians import gaussian_sinkhorn_drift
from keodrift.plots import new_figure, save_figure
from keodrift.sampling import balanced_normal, neighbour_order
from keodrift.settings import run_script
from keodrift.studies import Row, Study, markdown_table, run_study

NEGATIVES = ("self", "masked", "fresh", "fresh, balanced")
SETTINGS = {
    "spaces": ["gaussian", "digits"],
    "mnist": "",  # an .npz with images and labels, which adds the space of one digit
    "dimensions": [2, 6, 32],  # of the Gaussians
    "sizes": [32, 64, 128, 256, 512, 1024, 2048, 4096],
    "large": [16384, 100_000],  # of the Gaussian in the plane
    "taus": [0.05, 0.01],  # relative to the mean cost
    "fields": ["20 sweeps", "converged", "one-sided"],
    "negatives": list(NEGATIVES),
    "samples": 16384,  # points a mean is taken over, at least one batch
    "workers": 2,
    "output": "outputs/equilibrium",
}
QUICK = {
    "spaces": ["gaussian"],
    "dimensions": [2],
    "sizes": [32, 64],
    "large": [],
    "taus": [0.05],
    "fields": ["20 sweeps"],
    "samples": 512,
}
LEAST, MOST = 0.05, 3.0  # variance ratios among which rest is sought
Draw = Callable[[int, int, bool, torch.Generator], Tensor]


@dataclass(frozen=True)
class Cell:
    space: str
    d: int
    size: int
    tau: float
    field: str
    negatives: str
    samples: int
    mnist: str = ""

    @property
    def name(self) -> str:
        words = "-".join((self.field, self.negatives)).replace(", ", "_").replace(" ", "_")
        return f"{self.space}-d{self.d}-n{self.size}-tau{self.tau:g}-{words}-{self.samples}.json"


def drift_of(cell: Cell, tau: float) -> kd.SoftmaxDrift:
    mask = cell.negatives == "masked"
    if cell.field == "one-sided":
        return kd.OneSidedDrift(tau, cost="squared", mask_self=mask)
    if cell.field == "converged":
        return kd.SinkhornDrift(tau, cost="squared", tol=1e-3, mask_self=mask)
    return kd.SinkhornDrift(tau, cost="squared", half_steps=41, mask_self=mask)


def gaussian(d: int) -> tuple[Draw, Tensor, float]:
    """Draws of N(0, I), their mean, and the mean of ‖x − y‖²."""

    def draw(batches: int, n: int, balanced: bool, random: torch.Generator) -> Tensor:
        if balanced:
            return torch.stack([balanced_normal(n, d, random) for _ in range(batches)])
        return torch.randn(batches, n, d, generator=random)

    return draw, torch.zeros(d), 2.0 * d


def among(points: Tensor) -> tuple[Draw, Tensor, float]:
    """Draws from a population of points, their mean, and the mean of ‖x − y‖²."""
    order = neighbour_order(points)

    def draw(batches: int, n: int, balanced: bool, random: torch.Generator) -> Tensor:
        if balanced:  # one of every n-th part of the population
            within = torch.rand(batches, n, generator=random)
            places = (torch.arange(n) + within) * (len(points) / n)
            return points[order[places.long().clamp_max(len(points) - 1)]]
        return points[torch.randint(len(points), (batches, n), generator=random)]

    mean = points.mean(0)
    return draw, mean, 2 * float((points - mean).square().sum(-1).mean())


@cache
def space_of(name: str, d: int, mnist: str) -> tuple[Draw, Tensor, float]:
    if name == "gaussian":
        return gaussian(d)
    if name == "digits":
        return among(load_digits_latents(d).train)
    with np.load(mnist) as stored:
        images = stored["images"][stored["labels"] == 3].reshape(-1, 784) / 255.0
    latents = PCA(d, svd_solver="full").fit_transform(images)
    return among(torch.as_tensor(latents, dtype=torch.float32))


def radial_drifts(cell: Cell) -> Callable[[float], Tensor]:
    """Mean radial drift of every batch at a variance ratio; the same draws at every ratio."""
    draw, mean, cost = space_of(cell.space, cell.d, cell.mnist)
    drift = drift_of(cell, cell.tau * cost)
    batches = max(1, cell.samples // cell.size)
    balanced, fresh = "balanced" in cell.negatives, "fresh" in cell.negatives

    @cache
    def at(ratio: float) -> Tensor:
        random = torch.Generator().manual_seed(0)
        x, y, model = (draw(batches, cell.size, balanced, random) for _ in range(3))
        x, model = (mean + math.sqrt(ratio) * (z - mean) for z in (x, model))
        v = drift(x, y, model=model) if fresh else drift(x, y)
        away = x - mean
        return (away * v).sum((-1, -2)) / away.square().sum((-1, -2))

    return at


def measure(cell: Cell) -> Row:
    at = radial_drifts(cell)
    here = at(1.0)
    error = float(here.std()) / math.sqrt(len(here)) if len(here) > 1 else math.nan
    row: Row = {"drift": float(here.mean()), "error": error}

    def mean(log_ratio: float) -> float:
        return float(at(math.exp(log_ratio)).mean())

    low, high = math.log(LEAST), math.log(MOST)
    if mean(low) <= 0:
        return row | {"rest": None}  # below LEAST
    rest = high if mean(high) >= 0 else brentq(mean, low, high, xtol=5e-3)
    return row | {"rest": math.exp(rest)}


@dataclass(frozen=True)
class Equilibrium(Study[Cell]):
    config: dict
    title: str = "The variance at which a model comes to rest"

    def cells(self) -> dict[str, Cell]:
        config, problems = self.config, []
        for space in [*config.spaces, *(["mnist"] if config.mnist else [])]:
            for d in config.dimensions if space == "gaussian" else [6]:
                sizes = [n for n in config.sizes if space != "digits" or n <= 512]
                sizes += config.large if (space, d) == ("gaussian", 2) else []
                problems += [(space, d, n) for n in sizes]
        cells = [
            Cell(*problem, tau, field, negatives, config.samples, config.mnist)
            for problem in sorted(problems, key=lambda problem: problem[2])
            for tau in config.taus
            for field in config.fields
            for negatives in config.negatives
        ]
        return {cell.name: cell for cell in cells}

    @staticmethod
    def work(cell: Cell, path: Path) -> None:
        write_json(path, asdict(cell) | measure(cell))

    def table(self, rows: list[Row]) -> str:
        lines = []
        for row in rows:
            rest = f"< {LEAST:g}" if row["rest"] is None else f"{row['rest']:.3f}"
            problem = (title_of(row), row["size"], f"{row['tau']:g}", row["field"])
            error = "" if math.isnan(row["error"]) else f"{row['error']:.4f}"
            numbers = (f"{row['drift']:.4f}", error, predicted(row), rest)
            lines.append((*problem, row["negatives"], *numbers))
        header = (
            "space|batch:|τ / mean cost:|field|negatives|radial drift at q = p:|± standard error:"
        )
        return markdown_table(f"{header}|1 − drift/slope:|variance ratio at rest:", lines)

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        if rows:
            save_figure(figure_of(rows), stem.with_suffix(".png"))


def title_of(row: Row) -> str:
    names = {"gaussian": "Gaussian", "digits": "8×8 digits, all", "mnist": "MNIST, one digit"}
    return f"{names[row['space']]}, d = {row['d']}"


def population_slope(tau: float) -> float:
    """Radial drift of the population in units of s² − 1 about s = 1, for a Gaussian."""
    eye, zero = torch.eye(1), torch.zeros(1)
    small = 1e-4
    v = gaussian_sinkhorn_drift(torch.ones(1, 1), (zero, (1 + small) * eye), (zero, eye), tau)
    return float(v) / small


def predicted(row: Row) -> str:
    """Rest as the drift at q = p and the population's field say, which is known for Gaussians."""
    if row["space"] != "gaussian" or row["field"] == "one-sided":
        return ""
    # τ·2d for ‖x−y‖² is the temperature τ·d for half of it.
    return f"{1 - row['drift'] / population_slope(row['tau'] * row['d']):.3f}"


def figure_of(rows: list[Row]):
    """One column a space, one row a temperature: variance at rest over the batch."""
    spaces = list(dict.fromkeys(title_of(row) for row in rows))
    taus = sorted({row["tau"] for row in rows}, reverse=True)
    figure, axes = new_figure(4 * len(spaces), 3.4 * len(taus), len(taus), len(spaces))
    styles = {"20 sweeps": "o-", "converged": "s--", "one-sided": "^:"}
    for i, tau in enumerate(taus):
        for j, space in enumerate(spaces):
            panel = axes[i, j]
            for k, negatives in enumerate(NEGATIVES):
                for field, style in styles.items():
                    line = sorted(
                        (row["size"], row["rest"] or LEAST)
                        for row in rows
                        if (title_of(row), row["tau"]) == (space, tau)
                        and (row["negatives"], row["field"]) == (negatives, field)
                    )
                    if line:
                        how = {"color": f"C{k}", "alpha": 0.8, "ms": 4}
                        label = f"{negatives}; {field}"
                        panel.plot(*zip(*line, strict=True), style, label=label, **how)
            panel.axhline(1, color="0.5", lw=1)
            panel.set_xscale("log")
            panel.set(xlabel="batch", ylabel="variance ratio at rest")
            panel.set_ylim(0, 1.1)
            panel.set_title(f"{space}\nτ = {tau:g} of the mean cost", fontsize="medium")
    axes[0, 0].legend(fontsize="xx-small")
    figure.suptitle(
        "Where a model comes to rest: 1 is the data's variance; who repels decides, then the batch"
    )
    return figure


def main(config) -> None:
    folder = Path(config.output)
    study = Equilibrium(config)
    report = run_study(study, folder / "equilibrium", folder / "cells", workers=config.workers)
    print(report.page)


if __name__ == "__main__":
    run_script(main, SETTINGS, quick=QUICK, choices={"negatives": NEGATIVES})
