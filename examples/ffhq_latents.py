"""Faces from latents, as in Table 2 of Sinkhorn drifting: python examples/ffhq_latents.py

    python examples/ffhq_latents.py alae=FOLDER            # latents of an ALAE, see load_alae
    python examples/ffhq_latents.py data=[digits,mnist_pca_64,mnist_pca_512]
    python examples/ffhq_latents.py quick=true

The papers' two-sided field and 30 sweeps of Sinkhorn, each with `keodrift train
experiment=ffhq_paper` (batch 4096, 1000 steps) at three temperatures of exp(−‖x−y‖²/τ). Without
the real latents, made-up ones of the same dimension and classes stand in for them; the
temperatures then mean something else, and the paper's numbers only show the shape to look for.
With decoder= and features= (package.module:function) decoded images are compared, too.

Every cell trains in a process of its own, whose time a step and peak memory are in the table. Run
again, the script does what is missing. Table, figure and numbers land in output.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from keodrift.configuration import compose, quoted
from keodrift.data import write_synthetic_alae
from keodrift.files import write_json
from keodrift.plots import new_figure, save_figure
from keodrift.runs import train as train_run
from keodrift.settings import run_script
from keodrift.studies import Row, Study, markdown_table, run_study, set_up
from keodrift.training import checkpoints

FIELDS = {"two-sided": "two_sided", "Sinkhorn, 30 sweeps": "sinkhorn_30"}
# EMD and FID of the paper, means over classes, at its temperatures.
PAPER = {
    ("two-sided", 0.1): (453.3, 187.7),
    ("two-sided", 1.0): (370.5, 146.3),
    ("two-sided", 10.0): (156.4, 45.3),
    ("Sinkhorn, 30 sweeps", 0.1): (144.4, 37.1),
    ("Sinkhorn, 30 sweeps", 1.0): (137.6, 33.7),
    ("Sinkhorn, 30 sweeps", 10.0): (138.5, 33.9),
}
DATA = {  # classes, and what keodrift train is told
    "alae": (6, ("data=alae",)),
    "digits": (10, ("data=digits",)),
    "mnist_pca_64": (10, ("data=mnist_pca", "data.dim=64")),
    "mnist_pca_512": (10, ("data=mnist_pca", "data.dim=512")),
}
SETTINGS = {
    "data": ["alae"],
    "alae": None,  # a folder of real latents; made up in output without
    "dim": 512,  # of those, and held-out latents of each class; six times as many are to train on
    "held_out": 1000,
    "mnist": None,  # where MNIST is; downloaded without, see load_mnist
    "decoder": None,
    "features": None,
    "taus": [0.1, 1.0, 10.0],
    "fields": list(FIELDS),
    "batch": 4096,  # in all classes together
    "steps": 1000,
    "seed": 0,
    "device": "cpu",
    "workers": 1,  # more share the cores, and their times
    "output": "outputs/ffhq_latents",
}
QUICK = {"dim": 16, "held_out": 12, "taus": [10.0], "batch": 60, "steps": 4}


@dataclass(frozen=True)
class Cell:
    data: str
    tau: float
    field: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Faces(Study[Cell]):
    config: dict
    title: str = "Latents of faces"

    def cells(self) -> dict[str, Cell]:
        config, cells = self.config, {}
        for data in config.data:
            classes, words = DATA[data]
            shared = [
                *("experiment=ffhq_paper", *words, f"batch={round(config.batch / classes)}"),
                *(f"steps={config.steps}", f"evaluate_every={config.steps}"),
                *(f"seed={config.seed}", f"device={config.device}"),
            ]
            if data == "alae":
                shared.append(f"data.path={quoted(config.alae or f'{config.output}/alae')}")
                for name in ("decoder", "features"):
                    if config[name] is not None:
                        shared.append(f"task.{name}={quoted(config[name])}")
            elif data != "digits" and config.mnist is not None:
                shared.append(f"data.images.source={quoted(config.mnist)}")
            for tau in config.taus:
                for field in config.fields:
                    drift = FIELDS[field]
                    overrides = (*shared, f"drift={drift}", f"drift.tau={tau:g}")
                    name = f"{data}-tau{tau:g}-{drift}-{config.steps}-{config.seed}.json"
                    cells[name] = Cell(data, tau, field, overrides)
        return cells

    @staticmethod
    def work(cell: Cell, path: Path) -> None:
        """Trains in a fresh process: what it has used at most is this cell's."""
        fresh = multiprocessing.get_context("spawn")
        threads = (torch.get_num_threads(),)
        with ProcessPoolExecutor(1, fresh, set_up, threads) as own:
            found = own.submit(train, cell.overrides, path.with_suffix("")).result()
        known = {"data": cell.data, "tau": cell.tau, "field": cell.field}  # no paths of a machine
        write_json(path, known | found)

    def table(self, rows: list[Row]) -> str:
        lines = []
        for row in rows:
            faces = row["data"] == "alae"
            paper = PAPER.get((row["field"], row["tau"])) if faces and self.config.alae else None
            data = "made up" if faces and not self.config.alae else row["data"]
            fid = f"{row['image_frechet']:.1f}" if "image_frechet" in row else ""
            lines.append(
                (
                    *(data, f"{row['tau']:g}", row["field"]),
                    f"{row['w2_squared']:.4g}",
                    f"{row['w2_squared_floor']:.4g}",
                    f"{row['w2_relative']:.3f}",
                    f"{row['latent_frechet']:.4g}",
                    f"{row['latent_frechet_floor']:.4g}",
                    f"{row['variance_ratio']:.3f}",
                    f"{row['nearest_neighbour']:.3f}",
                    fid,
                    *(("", "") if paper is None else (f"{paper[0]:.1f}", f"{paper[1]:.1f}")),
                    f"{row['seconds'] / row['steps']:.3g}",
                    f"{row['peak_mb']:.0f}",
                )
            )
        header = (
            "data|τ:|field|EMD:|EMD of real latents:|EMD / variance:|Fréchet:|"
            "Fréchet of real latents:|variance ratio:|1-NN:|FID:|EMD (paper):|FID (paper):|"
            "seconds a step:|peak memory, MB:"
        )
        return markdown_table(header, lines)

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        shown = list(dict.fromkeys(row["data"] for row in rows))
        if not shown:
            return
        figure, axes = new_figure(4.5 * len(shown), 3.6, 1, len(shown))
        for panel, data in zip(axes[0], shown, strict=True):
            mine = [row for row in rows if row["data"] == data]
            for field in FIELDS:
                line = sorted((r["tau"], r["w2_squared"]) for r in mine if r["field"] == field)
                if line:
                    panel.plot(*zip(*line, strict=True), "o-", label=field)
            floor = mine[0]["w2_squared_floor"]
            panel.axhline(floor, color="0.5", ls=":", label="real against real")
            panel.set(xscale="log", yscale="log", title=data)
            panel.set(xlabel="temperature τ of exp(−‖x−y‖²/τ)", ylabel="EMD of a class")
        axes[0, 0].legend(fontsize="small")
        figure.suptitle("Latents: lower is better, the dotted line is as good as real ones")
        save_figure(figure, stem.with_suffix(".png"))


def train(overrides: tuple[str, ...], folder: Path) -> Row:
    config = compose("train", overrides)
    config.output, config.progress = str(folder), False
    config.resume = bool(checkpoints(folder))
    found = train_run(config)
    if torch.device(config.device).type == "cuda":
        return found | {"peak_mb": torch.cuda.max_memory_allocated() / 1e6}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kibibytes on Linux
    return found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


def main(config) -> None:
    folder = Path(config.output)
    made = folder / "alae"
    if "alae" in config.data and config.alae is None and not (made / "test.npz").exists():
        write_synthetic_alae(made, per_class=config.held_out, dim=config.dim)
    stem = folder / "ffhq_latents"
    report = run_study(Faces(config), stem, folder / "cells", workers=config.workers)
    print(report.page)


if __name__ == "__main__":
    run_script(main, SETTINGS, quick=QUICK, choices={"data": list(DATA), "fields": list(FIELDS)})
