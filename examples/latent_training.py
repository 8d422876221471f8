"""Class-conditional networks of real latents: what training keeps their variance?

    python examples/latent_training.py
    python examples/latent_training.py per_class=[64] seeds=[0]
    python examples/latent_training.py quick=true

The 8×8 digits of scikit-learn in a PCA latent space, ten classes a batch. Judged class by class
and averaged: variance ratio, 1-NN two-sample accuracy (½ is indistinguishable) and W₂² to the
test latents, each beside what the training latents score. W₂² alone flatters a shrunken network.

Every cell is kept in output/cells; run again, the script does what is missing. Table, figure and
numbers land in output.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import keodrift as kd
from keodrift.data import Latents, load_digits_latents
from keodrift.files import write_json
from keodrift.metrics import (
    class_nearest_neighbour_test,
    class_variance_ratio,
    class_wasserstein_squared,
)
from keodrift.networks import ConditionalMLP, sample
from keodrift.plots import new_figure, save_figure
from keodrift.settings import run_script
from keodrift.studies import Row, Study, grouped, markdown_table, run_study
from keodrift.tasks import latent_batches
from keodrift.training import Objective, Trainer

TRAININGS = {
    "self, independent": ("self", False),
    "self, balanced": ("self", True),
    "masked, independent": ("masked", False),
    "fresh, independent": ("fresh", False),
    "fresh, balanced": ("fresh", True),
    "crossed, balanced": ("crossed", True),
}
FIELDS = ["20 sweeps", "converged", "relaxed"]
SETTINGS = {
    "dim": 6,
    "tau": 0.05,  # relative to the mean cost of each class, ‖x−y‖²
    "reach": 5.0,  # likewise
    "trainings": list(TRAININGS),
    "fields": FIELDS,
    "per_class": [16, 64],
    "seeds": [0, 1, 2],
    "steps": 2000,
    "judgements": 8,  # clouds of a network that are judged and averaged
    "workers": 2,
    "output": "outputs/latent_training",
}
QUICK = {"per_class": [16], "seeds": [0], "steps": 10, "judgements": 1, "fields": ["20 sweeps"]}
KEYS = {
    "variance_ratio": class_variance_ratio,
    "nearest_neighbour": class_nearest_neighbour_test,
    "w2_squared": class_wasserstein_squared,
}


@dataclass(frozen=True)
class Cell:
    dim: int
    training: str
    field: str
    per_class: int
    tau: float
    reach: float
    seed: int
    steps: int
    judgements: int

    @property
    def name(self) -> str:
        words = f"{self.training}-{self.field}".replace(", ", "_").replace(" ", "_")
        return (
            f"d{self.dim}-{words}-n{self.per_class}-tau{self.tau:g}-{self.steps}-{self.seed}.json"
        )


def drift_of(cell: Cell) -> kd.SinkhornDrift:
    how = {"tau": cell.tau, "relative": True, "cost": "squared"}
    if cell.field == "20 sweeps":
        return kd.SinkhornDrift(**how, half_steps=41)
    return kd.SinkhornDrift(**how, reach=cell.reach if cell.field == "relaxed" else None)


def judge(points: Tensor, labels: Tensor, latents: Latents) -> Row:
    """Means over classes of what points score against test latents; the variance, against all."""
    test = (latents.test, latents.test_labels)
    every = (torch.cat([latents.train, test[0]]), torch.cat([latents.train_labels, test[1]]))
    row = {}
    for name, measure in KEYS.items():
        real = every if name == "variance_ratio" else test
        row[name] = statistics.fmean(measure(points, labels, *real).values())
    return row


def halves(latents: Latents) -> tuple[Tensor, Tensor]:
    """As many training latents of each class as it has test latents, evenly picked."""
    picks = []
    for label in range(latents.classes):
        members = (latents.train_labels == label).nonzero()[:, 0]
        picks.append(members[:: len(members) // int((latents.test_labels == label).sum())])
    chosen = torch.cat(picks)
    return latents.train[chosen], latents.train_labels[chosen]


def train(cell: Cell, path: Path) -> None:
    latents = load_digits_latents(cell.dim)
    network = ConditionalMLP(cell.dim, cell.dim, latents.classes, seed=cell.seed)
    negatives, balanced = TRAININGS[cell.training]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    trainer = Trainer(
        network,
        latent_batches(network, latents, cell.per_class, balanced=balanced, negatives=negatives),
        Objective(drift_of(cell), negatives=negatives),
        optimizer,
        torch.Generator().manual_seed(cell.seed),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cell.steps),
        log_every=cell.steps,
    )
    trainer.run(cell.steps)
    labels = latents.test_labels
    random = torch.Generator().manual_seed(1)
    found = []
    for _ in range(cell.judgements):
        points = sample(trainer.average, len(labels), random, labels=labels)
        found.append(judge(points, labels, latents))
    row = asdict(cell) | {name: statistics.fmean(one[name] for one in found) for name in KEYS}
    floor = judge(*halves(latents), latents)
    write_json(path, row | {"floor": floor, "seconds": trainer.history[-1]["seconds"]})


@dataclass(frozen=True)
class LatentTraining(Study[Cell]):
    config: dict
    title: str = "Class-conditional networks of digits"

    def cells(self) -> dict[str, Cell]:
        config = self.config
        cells = [
            Cell(
                config.dim,
                training,
                field,
                per_class,
                config.tau,
                config.reach,
                seed,
                config.steps,
                config.judgements,
            )
            for seed in config.seeds
            for per_class in config.per_class
            for field in config.fields
            for training in config.trainings
        ]
        return {cell.name: cell for cell in cells}

    @staticmethod
    def work(cell: Cell, path: Path) -> None:
        train(cell, path)

    def table(self, rows: list[Row]) -> str:
        lines = [
            (
                row["training"],
                row["field"],
                row["per_class"],
                row["runs"],
                *(f"{row[k]:.3f} ± {row[f'{k}_std']:.3f}" for k in KEYS),
                f"{row['seconds']:.0f}",
            )
            for row in means_of(rows)
        ]
        if rows:
            floor = (f"{rows[0]['floor'][k]:.3f}" for k in KEYS)
            lines.append(("real against real", "", "", "", *floor, ""))
        header = "training|coupling|per class:|runs:|variance ratio:|1-NN:|W₂²:|seconds:"
        return markdown_table(header, lines)

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        if rows:
            save_figure(figure_of(means_of(rows), rows[0]["floor"]), stem.with_suffix(".png"))


def means_of(rows: list[Row]) -> list[Row]:
    """One row a training: means and standard deviations over seeds."""
    groups = grouped(rows, "training", "field", "per_class")
    means = []
    for (training, field, per_class), runs in groups.items():
        mean: Row = {"training": training, "field": field, "per_class": per_class}
        mean |= {"runs": len(runs), "seconds": statistics.fmean(run["seconds"] for run in runs)}
        for key in KEYS:
            values = [run[key] for run in runs]
            mean[key] = statistics.fmean(values)
            mean[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        means.append(mean)
    return means


def figure_of(means: list[Row], floor: Row):
    """A panel a measure, a line a training, over the batch of a class."""
    figure, axes = new_figure(4 * len(KEYS), 3.6, 1, len(KEYS))
    words = {"variance_ratio": "variance ratio", "nearest_neighbour": "1-NN accuracy"}
    trainings = list(dict.fromkeys(row["training"] for row in means))
    for panel, key in zip(axes[0], KEYS, strict=True):
        for k, training in enumerate(trainings):
            for field, style in zip(FIELDS, ("o-", "s--", "^:"), strict=True):
                line = sorted(
                    (row["per_class"], row[key])
                    for row in means
                    if (row["training"], row["field"]) == (training, field)
                )
                if line:
                    label = f"{training}; {field}"
                    panel.plot(*zip(*line, strict=True), style, color=f"C{k}", label=label, ms=4)
        panel.axhline(floor[key], color="0.4", ls=":", label="real against real")
        panel.set(xlabel="points of a class and step", ylabel=words.get(key, "$W_2^2$"))
        panel.set_xscale("log")
    axes[0, 0].legend(fontsize="xx-small")
    figure.suptitle("Networks of 8×8 digits: real latents score the dotted lines")
    return figure


def main(config) -> None:
    folder = Path(config.output)
    stem = folder / "latent_training"
    report = run_study(LatentTraining(config), stem, folder / "cells", workers=config.workers)
    print(report.page)


if __name__ == "__main__":
    choices = {"trainings": list(TRAININGS), "fields": FIELDS}
    run_script(main, SETTINGS, quick=QUICK, choices=choices)
