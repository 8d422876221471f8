"""Networks of real latents: what each ingredient of a training does.

    python examples/latent_training.py                                     # 8×8 digits
    python examples/latent_training.py data=mnist mnist_path=mnist.npz     # see load_mnist
    python examples/latent_training.py "recipes=[paper, recommended]" seeds=[0,1,2]
    python examples/latent_training.py quick=true

Six latent dimensions of an autoencoder. A recommended training, and beside it those that differ in
one ingredient from it, or from the paper's. Most are told the ten classes and judged class by
class; the others learn all digits as one cloud, and a classifier says which digits they draw.
Every number stands beside what training latents score: W₂² (EMD) alone flatters a shrunken network.
*By heart* is what a network scores that draws its training latents again: some come twice, which a
two-sample test sees, and only one that knows more than its data can do better.

Every cell is kept in output/cells; run again, the script does what is missing. Table, figure and
numbers land in output.
"""

from __future__ import annotations

import hashlib
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

import keodrift as kd
from keodrift.data import Images, Latents, load_digit_images, load_mnist
from keodrift.files import write_json
from keodrift.networks import ConditionalMLP
from keodrift.plots import new_figure, save_figure
from keodrift.settings import run_script
from keodrift.studies import Claims, Row, Study, grouped, markdown_table, run_study
from keodrift.tasks import Guidance, LatentTask
from keodrift.training import Objective, Trainer
from keodrift.vision import ImageClassifier, image_classifier, image_latents


@dataclass(frozen=True)
class Recipe:
    """A training; as it stands, the recommended one."""

    negatives: str = "fresh"
    balanced: bool = True
    normalize: bool = False
    guided: bool = False
    rate: str = "cosine"  # from 1e-3 to 0; or "constant", or that of the "paper"
    ema: float = 0.99
    width: int = 256
    batch: int | None = 64  # of a class; None: as many as the smallest class has
    more_data: int = 1  # data, and fresh draws, for each sample
    length: float = 1.0  # in steps of the study
    taus: tuple[float, ...] = (0.05,)  # relative to the mean cost ‖x−y‖², one after the other
    coupling: str = "20 sweeps"
    classes: bool = True  # or all digits as one


PAPER = {"negatives": "self", "balanced": False, "rate": "paper", "ema": 0.999}
BY_HEART = "by heart"
ONE = {"classes": False, "batch": 256, "length": 0.5, "taus": (0.02,)}
RECIPES = {
    "paper": Recipe(**PAPER, normalize=True, guided=True),
    "paper, no normalisation": Recipe(**PAPER, guided=True),
    "paper, no guidance": Recipe(**PAPER, normalize=True),
    "paper, neither": Recipe(**PAPER),
    "recommended": Recipe(),
    "self": Recipe(negatives="self"),
    "self, independent": Recipe(negatives="self", balanced=False),
    "independent": Recipe(balanced=False),
    "normalised": Recipe(normalize=True),
    "guided": Recipe(guided=True),
    "constant rate": Recipe(rate="constant"),
    "half as long": Recipe(length=0.5),
    "twice as long": Recipe(length=2.0),
    "width 512": Recipe(width=512),
    "4 × data": Recipe(more_data=4),
    "256 a class": Recipe(batch=256, length=0.25),
    "512 a class": Recipe(batch=512, length=0.125),
    "256 a class, as many steps": Recipe(batch=256),
    "512 a class, as many steps": Recipe(batch=512),
    "512 a class, width 512, τ = 0.02": Recipe(batch=512, width=512, taus=(0.02,)),
    "4 × data, 256 a class, width 512, τ = 0.02": Recipe(
        more_data=4, batch=256, width=512, taus=(0.02,)
    ),
    "whole class": Recipe(batch=None, length=0.012, coupling="converged"),
    "τ = 0.02": Recipe(taus=(0.02,)),
    "τ = 0.1": Recipe(taus=(0.1,)),
    "τ falls": Recipe(taus=(0.1, 0.05, 0.02)),
    "one half-step": Recipe(coupling="one half-step"),
    "converged": Recipe(coupling="converged"),
    "relaxed": Recipe(coupling="relaxed"),
    "no average": Recipe(ema=0.0),
    "average 0.999": Recipe(ema=0.999),
    BY_HEART: None,
    "one cloud, 20 sweeps": Recipe(**ONE),
    "one cloud, converged": Recipe(**ONE, coupling="converged"),
    "one cloud, relaxed": Recipe(**ONE, coupling="relaxed"),
}
CHOSEN = {True: "recommended", False: "one cloud, relaxed"}  # whose marks are claims
SETTINGS = {
    "data": "digits",
    "mnist_path": None,  # downloaded without, see load_mnist
    "dim": 6,
    "recipes": list(RECIPES),
    "seeds": [0],
    "steps": 5000,
    "judge_draws": 4,
    "workers": 2,
    "output": "outputs/latent_training",
}
QUICK = {"recipes": ["recommended", BY_HEART, "one cloud, relaxed"], "steps": 8, "judge_draws": 1}
COLUMNS = {
    "w2_squared": ("EMD", ".3f"),
    "w2_relative": ("EMD / variance", ".4f"),
    "variance_ratio": ("variance ratio", ".3f"),
    "nearest_neighbour": ("1-NN", ".3f"),
    "accuracy": ("accuracy", ".2%"),
    "sure": ("sure", ".2%"),
    "share_error": ("error of shares", ".4f"),
}
JUDGED = {  # without classes to ask for, no accuracy
    True: [key for key in COLUMNS if key not in ("sure", "share_error")],
    False: [key for key in COLUMNS if key != "accuracy"],
}
Mark = Callable[[Row], bool]
ALIKE: dict[str, Mark] = {
    "EMD within 2 % of real against real": lambda r: (
        r["w2_squared"] <= 1.02 * r["w2_squared_floor"]
    ),
    "variance ratio 0.98–1.02": lambda r: 0.98 <= r["variance_ratio"] <= 1.02,
    "1-NN within 0.008 of real against real": lambda r: (
        abs(r["nearest_neighbour"] - r["nearest_neighbour_floor"]) <= 0.008
    ),
}
MARKS: dict[bool, dict[str, Mark]] = {
    True: {"accuracy ≥ 99.9 %": lambda r: r["accuracy"] >= 0.999, **ALIKE},
    False: {
        "shares within 0.01 of real": lambda r: r["share_error"] <= r["share_error_floor"] + 0.01,
        **ALIKE,
    },
}


@dataclass(frozen=True)
class Cell:
    name: str
    recipe: Recipe | None  # None: the training latents by heart
    data: str
    mnist_path: str | None
    dim: int
    seed: int
    steps: int
    judge_draws: int

    @property
    def file(self) -> str:
        words = re.sub(r"\W+", "_", self.name)
        known = hashlib.sha256(repr((self.recipe, self.dim, self.judge_draws)).encode()).hexdigest()
        return f"{self.data}-{words}-{known[:8]}-{self.steps}-{self.seed}.json"


@lru_cache(maxsize=1)
def latents_and_judge(data: str, path: str | None, dim: int) -> tuple[Latents, ImageClassifier]:
    images: Images = load_digit_images() if data == "digits" else load_mnist(path)
    return image_latents(images, dim, progress=False), image_classifier(images, progress=False)


class ByHeart(torch.nn.Module):
    """A network that knows its training latents by heart: the noise picks one of the class."""

    def __init__(self, latents: Latents) -> None:
        super().__init__()
        self.noise_dim, self.latents = 1, latents

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Noise ``(n, 1)`` and classes ``(n,)`` to latents ``(n, d)``."""
        share = torch.special.ndtr(noise[:, 0].double())
        out = self.latents.train.new_empty(len(noise), self.latents.dim)
        for k in range(self.latents.classes):
            own, mine = self.latents.of_class(k), labels == k
            out[mine] = own[(share[mine] * len(own)).long().clamp_max(len(own) - 1)]
        return out


def as_one(latents: Latents) -> Latents:
    """All digits as one class, in orders along which even picks are fair to a network.

    Held-out digits come one after the other, so that their shares are exact; the others at random,
    as samples do (MNIST's own order runs through the digits again and again).
    """
    train, test = map(torch.zeros_like, (latents.train_labels, latents.test_labels))
    mixed = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return replace(
        latents,
        train=latents.train[mixed],
        train_labels=train,
        test=latents.test[latents.test_labels.argsort(stable=True)],
        test_labels=test,
        class_names=("all",),
    )


def drift_of(recipe: Recipe, tau: float, task: LatentTask) -> kd.SinkhornDrift:
    drift = kd.SinkhornDrift(tau, relative=True, cost="squared")
    if recipe.coupling == "relaxed":
        return replace(drift, reach=task.reach("squared", relative=True))
    half_steps = {"one half-step": 1, "20 sweeps": 41, "converged": None}[recipe.coupling]
    return replace(drift, half_steps=half_steps)


def optimizer_of(
    recipe: Recipe, network: ConditionalMLP, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    if recipe.rate == "paper":
        betas = (0.9, 0.95)
        adam = torch.optim.AdamW(network.parameters(), lr=2e-4, betas=betas, weight_decay=0.01)
        return adam, torch.optim.lr_scheduler.LinearLR(adam, 1 / 750, total_iters=750)
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    if recipe.rate == "constant":
        return adam, None
    return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)


def write_cell(cell: Cell, path: Path, found: dict, seconds: float) -> None:
    known = asdict(replace(cell, mnist_path=None))  # a path is of one machine
    write_json(path, known | found | {"seconds": seconds})


def train(cell: Cell, path: Path) -> None:
    latents, classifier = latents_and_judge(cell.data, cell.mnist_path, cell.dim)
    recipe = cell.recipe
    if recipe is None:
        shared = {"judge_draws": cell.judge_draws, "seed": cell.seed}
        task, begun = LatentTask(latents, classifier=classifier, **shared), time.perf_counter()
        found = task.judge(ByHeart(latents), path.with_suffix(""))
        write_cell(cell, path, found, time.perf_counter() - begun)
        return
    latents = latents if recipe.classes else as_one(latents)
    smallest = int(torch.bincount(latents.train_labels).min())
    batch = smallest if recipe.batch is None else recipe.batch
    task = LatentTask(
        latents,
        batch=batch,
        data_batch=recipe.more_data * batch,
        negatives=recipe.negatives,
        balanced=recipe.balanced,
        guidance=Guidance() if recipe.guided else None,
        classifier=classifier,
        judge_samples=None if recipe.classes else 2000,
        judge_draws=cell.judge_draws,
        seed=cell.seed,
    )
    objectives = [
        Objective(
            drift_of(recipe, tau, task),
            normalize=recipe.normalize,
            scale_features=recipe.normalize,
            negatives=recipe.negatives,
        )
        for tau in recipe.taus
    ]
    network = ConditionalMLP(**task.network_defaults(), width=recipe.width, seed=cell.seed)
    steps = max(len(objectives), round(recipe.length * cell.steps))
    optimizer, scheduler = optimizer_of(recipe, network, steps)
    trainer = Trainer(
        network,
        task.batches(network),
        objectives[0],
        optimizer,
        torch.Generator().manual_seed(cell.seed),
        scheduler=scheduler,
        ema=recipe.ema,
        clip=2.0 if recipe.rate == "paper" else None,
        evaluate=task.evaluate,
        evaluate_every=max(1, steps // 8),
        log_every=steps,
    )
    for k, trainer.objective in enumerate(objectives, start=1):
        trainer.run(steps * k // len(objectives))
    found = task.judge(trainer.average, path.with_suffix(""))
    write_cell(cell, path, found, trainer.history[-1]["seconds"])
    task.draw(trainer.average, trainer.history, path.with_suffix(""))


@dataclass(frozen=True)
class LatentTraining(Study[Cell]):
    config: dict
    title: str = "Networks of latent digits"

    def cells(self) -> dict[str, Cell]:
        config = self.config
        shared = (config.data, config.mnist_path, config.dim)
        cells = [
            Cell(name, RECIPES[name], *shared, seed, config.steps, config.judge_draws)
            for seed in config.seeds
            for name in config.recipes
        ]
        return {cell.file: cell for cell in cells}

    @staticmethod
    def work(cell: Cell, path: Path) -> None:
        train(cell, path)

    def rows(self, folder: Path) -> list[Row]:
        """Means over seeds, recipe by recipe."""
        rows = []
        for (name,), runs in grouped(super().rows(folder), "name").items():
            recipe = runs[0]["recipe"] or {"classes": True}
            row: Row = {"name": name, "classes": recipe["classes"], "runs": len(runs)}
            keys = JUDGED[row["classes"]]
            for key in (*keys, *(f"{key}_floor" for key in keys), "seconds"):
                row[key] = statistics.fmean(run[key] for run in runs)
            marks = MARKS[row["classes"]]
            rows.append(row | {"met": [mark for mark, met in marks.items() if met(row)]})
        return rows

    def table(self, rows: list[Row]) -> str:
        tables = []
        for classes, title in ((True, "Ten classes"), (False, "All digits as one cloud")):
            mine = [row for row in rows if row["classes"] == classes]
            if not mine:
                continue
            keys = JUDGED[classes]
            lines = [
                (
                    *(row["name"], row["runs"]),
                    *(format(row[key], COLUMNS[key][1]) for key in keys),
                    f"{row['w2_squared'] / row['w2_squared_floor'] - 1:+.1%}",
                    f"{len(row['met'])} of {len(MARKS[classes])}",
                    f"{row['seconds']:.0f}",
                )
                for row in mine
            ]
            floor = (format(mine[0][f"{key}_floor"], COLUMNS[key][1]) for key in keys)
            lines.append(("real against real", "", *floor, "", "", ""))
            words = "".join(f"|{COLUMNS[key][0]}:" for key in keys)
            header = f"training|runs:{words}|EMD over real:|marks met:|seconds:"
            tables.append(f"## {title}\n\n{markdown_table(header, lines)}")
        return "\n\n".join(tables)

    def claims(self, rows: list[Row]) -> Claims:
        """The marks, each met by the training that is recommended."""
        met = {row["name"]: row["met"] for row in rows}
        return {
            f"{name}: {mark}": mark in met[name] if name in met else None
            for classes, name in CHOSEN.items()
            for mark in MARKS[classes]
        }

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        """What every training scores, beside real latents and the marks."""
        if not rows:
            return
        panels = {
            "EMD / real against real": (
                [row["w2_squared"] / row["w2_squared_floor"] for row in rows],
                (0.98, 1.02),
            ),
            "variance ratio": ([row["variance_ratio"] for row in rows], (0.98, 1.02)),
            "1-NN less real against real": (
                [row["nearest_neighbour"] - row["nearest_neighbour_floor"] for row in rows],
                (-0.008, 0.008),
            ),
        }
        figure, axes = new_figure(12, 1 + 0.3 * len(rows), 1, 3)
        places = list(range(len(rows)))[::-1]
        for panel, (title, (values, band)) in zip(axes[0], panels.items(), strict=True):
            panel.axvspan(*band, color="C2", alpha=0.3)
            panel.plot(values, places, "o", ms=4)
            panel.set(yticks=places, yticklabels=[], xlabel=title)
            panel.grid(axis="y", alpha=0.3)
        axes[0, 0].set_yticklabels([row["name"] for row in rows])
        figure.suptitle(f"{self.title}: as good as real ones in the green band")
        save_figure(figure, stem.with_suffix(".png"))


def main(config) -> None:
    folder = Path(config.output)
    stem = folder / f"latent_training_{config.data}"
    report = run_study(LatentTraining(config), stem, folder / "cells", workers=config.workers)
    print(report.page)


if __name__ == "__main__":
    choices = {"data": ["digits", "mnist"], "recipes": list(RECIPES)}
    run_script(main, SETTINGS, quick=QUICK, choices=choices)
