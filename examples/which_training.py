"""Which training of a one-step network wins? python examples/which_training.py

Who repels (the samples themselves, masked, fresh draws, crossed halves) × how batches are drawn
(independent, balanced) × how the coupling is found (20 sweeps, converged, relaxed) × learning rate
(constant, falling to zero from the start or late) × batch size × temperature × seeds, on eight
Gaussians, the checkerboard, and two and eight modes whose masses the network has learned wrong
before. Judged by points between modes, mass in the wrong mode, W₂², variance ratio and 1-NN
two-sample accuracy, each beside real against real.

    python examples/which_training.py targets=[eight_gaussians] batches=[256] seeds=[0]
    python examples/which_training.py quick=true

Every cell is kept in output/cells; run again, the script does what is missing. Figure, table and
numbers land in output.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

import keodrift as kd
from keodrift.data import Target, get_target
from keodrift.files import atomic_path, write_json
from keodrift.metrics import (
    mode_coverage,
    nearest_neighbour_test,
    variance_ratio,
    wasserstein_squared,
)
from keodrift.networks import MLP, draw_noise
from keodrift.plots import new_figure, save_figure
from keodrift.reach import reach_for_gaps
from keodrift.sampling import Pool
from keodrift.settings import run_script
from keodrift.studies import Row, Study, grouped, markdown_table, run_missing, run_study
from keodrift.tasks import target_batches
from keodrift.training import Batch, BatchSource, LateFall, Objective, Trainer

MORE = {"4 x fresh": 4, "16 x fresh": 16}  # with as many times the data and fresh draws
NEGATIVES = ["self", "masked", "fresh", "crossed", "4 x fresh"]
ALSO = ["stratified", "pool"]  # tried beside them, with independent batches
POOL = 4096  # draws and data of a pool
TARGETS = ["eight_gaussians", "checkerboard", "two_modes, wrong", "eight_gaussians, wrong"]
SOLVES = ["20 sweeps", "converged", "relaxed"]
SCHEDULES = ["constant", "cosine", "late"]
# The papers' training, each remedy alone, and together.
FEW = [
    ("self", "independent", "20 sweeps"),
    ("self", "independent", "converged"),
    ("self", "balanced", "20 sweeps"),
    ("fresh", "balanced", "20 sweeps"),
    ("fresh", "balanced", "relaxed"),
    ("4 x fresh", "balanced", "20 sweeps"),
]
SETTINGS = {
    "targets": TARGETS,
    "few": False,  # only the trainings of FEW
    "negatives": NEGATIVES,
    "draws": ["independent", "balanced"],
    "solves": SOLVES,
    "batches": [64, 256, 1024, 4096, 16384],
    "taus": [0.1, 0.01],  # of exp(−‖x−y‖²/τ)
    "seeds": [0, 1, 2, 3, 4],
    "samples": 384_000,  # points a run sees, in all: large batches make fewer steps
    "least_steps": 300,  # but no fewer than these
    "rate": 3e-3,  # of Adam
    "schedules": SCHEDULES,  # of that rate
    "looks": 3,  # at a training
    "judged": 2000,  # points of the network for distances
    "counted": 20_000,  # and for masses
    "limit": None,  # cells to do now, at most; with 0 what is there is drawn
    "workers": 2,
    "output": "outputs/which_training",
}
QUICK = {
    "targets": ["eight_gaussians", "two_modes, wrong"],
    "batches": [64],
    "schedules": ["late"],
    "taus": [0.1],
    "seeds": [0],
    "samples": 640,
    "least_steps": 5,
    "looks": 1,
    "judged": 200,
    "counted": 200,
}
WRONG = {2: 0.9, 8: 0.65}  # share of the first mode that the network has learned


@dataclass(frozen=True)
class Cell:
    target: str
    negatives: str
    draw: str
    solve: str
    batch: int
    tau: float
    seed: int
    rate: float
    schedule: str
    steps: int
    looks: int
    judged: int
    counted: int

    @property
    def name(self) -> str:
        words = (self.target, self.negatives, self.draw, self.solve)
        name = "-".join(words).replace(", ", "_").replace(" ", "_")
        shape = f"n{self.batch}-tau{self.tau:g}-{self.steps}x{self.rate:g}-{self.schedule}"
        return f"{name}-{shape}-seed{self.seed}.json"


def drift_of(cell: Cell, data: Tensor) -> kd.SinkhornDrift:
    how = {"tau": cell.tau, "cost": "squared"}
    if cell.solve == "20 sweeps":
        return kd.SinkhornDrift(**how, half_steps=41)
    if cell.solve == "relaxed":
        return kd.SinkhornDrift(**how, reach=reach_for_gaps(data, cost="squared"))
    return kd.SinkhornDrift(**how)


@dataclass(frozen=True)
class Judge:
    """Points of a target: evenly drawn for W₂², which sees a network then and not the luck."""

    target: Target
    even: int
    counted: int

    @cache  # noqa: B019 (a judge lives as long as its process)
    def real(self, seed: int) -> tuple[Tensor, Tensor]:
        pool = Pool(self.target.sample, size=1 << 20)
        return pool.draw(self.even, seeded(seed)), self.target.sample(self.counted, seeded(seed))

    def points(self, network: torch.nn.Module) -> tuple[Tensor, Tensor]:
        noise = (
            draw_noise(network, n, seeded(2000), balanced=balanced)
            for n, balanced in ((self.even, True), (self.counted, False))
        )
        with torch.no_grad():
            even, many = map(network, noise)
        return even, many

    def __call__(self, clouds: tuple[Tensor, Tensor]) -> Row:
        (even, many), (real_even, real) = clouds, self.real(1000)
        row: Row = {
            "w2_squared": wasserstein_squared(even, real_even, cap=self.even),
            "variance_ratio": variance_ratio(many, real),
            "nearest_neighbour": nearest_neighbour_test(many, real, cap=self.even),
        }
        target = self.target
        if target.modes is not None:
            found = mode_coverage(many, target.modes, target.mode_radius)
            row |= {"stray": found.stray, "wrong": found.wrong_mass}
        return row


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pooled(drift: kd.SinkhornDrift, x: Tensor, y: Tensor, *, model: Tensor) -> Tensor:
    """The field of a pool of draws and as many data, at the samples of a batch."""
    return drift.fit(model, y)(x)


def stratified(network: MLP, target: Target, size: int, random: torch.Generator) -> Batch:
    """An independent batch whose weights give every mode its mass, of the data and of the model."""
    modes = len(target.modes)

    def shares(points: Tensor) -> tuple[Tensor, Tensor]:
        mode = target.nearest_mode(points)
        return torch.bincount(mode, minlength=modes) / len(points), mode

    noise, data = draw_noise(network, size, random), target.sample(size, random)
    with torch.no_grad():
        found, mode = shares(network(noise))
        wanted, _ = shares(network(draw_noise(network, POOL, random)))
    own, data_mode = shares(data)
    weights = {"x_weights": (wanted / found)[mode], "y_weights": (1 / modes / own)[data_mode]}
    return Batch((noise,), data, weights)


def setting(cell: Cell, network: MLP, target: Target) -> tuple[BatchSource, Objective]:
    """Batches and loss of a training."""
    drift = drift_of(cell, target.sample(2000, seeded(99)))
    if cell.negatives == "stratified":
        return partial(stratified, network, target, cell.batch), Objective(drift)
    more = {name: times * cell.batch for name, times in MORE.items()} | {"pool": POOL}
    negatives = "fresh" if cell.negatives in more else cell.negatives
    batches = target_batches(
        network,
        target,
        cell.batch,
        negatives=negatives,
        balanced=cell.draw == "balanced",
        data_size=more.get(cell.negatives),
    )
    field = partial(pooled, drift) if cell.negatives == "pool" else drift
    return batches, Objective(field, negatives=negatives)


def scheduler_of(cell: Cell, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
    if cell.schedule == "constant":
        return None
    falling = CosineAnnealingLR if cell.schedule == "cosine" else LateFall
    return falling(optimizer, cell.steps)


def trained(
    network: MLP, target: Target, cell: Cell, random: torch.Generator, look=None
) -> Trainer:
    batches, objective = setting(cell, network, target)
    adam = torch.optim.Adam(network.parameters(), lr=cell.rate)
    trainer = Trainer(
        network,
        batches,
        objective,
        adam,
        random,
        scheduler=scheduler_of(cell, adam),
        ema=0.995,
        evaluate=look,
        evaluate_every=max(1, cell.steps // cell.looks),
        log_every=cell.steps,
    )
    trainer.run(cell.steps)
    return trainer


def uneven(target: Target) -> Target:
    """The same modes with most of the mass on the first."""
    modes = target.modes
    first = WRONG[len(modes)]
    masses = torch.tensor([first] + [(1 - first) / (len(modes) - 1)] * (len(modes) - 1))

    def draw(n: int, random: torch.Generator) -> Tensor:
        pool = target.sample(16 * len(modes) * n, random)
        mode = target.nearest_mode(pool)
        wanted = torch.bincount(
            torch.multinomial(masses, n, replacement=True, generator=random), minlength=len(modes)
        )
        return torch.cat([pool[mode == k][:count] for k, count in enumerate(wanted.tolist())])

    return Target(target.name, draw, modes, target.mode_radius)


def beginning(spec: tuple[str, int, int], path: Path) -> None:
    """A network that has learned the wrong masses, the same for all trainings of a seed."""
    name, seed, steps = spec
    kind = (name, "fresh", "independent", "converged")
    cell = Cell(*kind, 256, 0.1, seed, 1e-3, "constant", steps, 1, 0, 0)
    network = MLP(width=128, hidden=3, seed=seed)
    average = trained(network, uneven(get_target(name)), cell, seeded(seed)).average
    with atomic_path(path) as draft:
        torch.save(average.state_dict(), draft)


def start_of(name: str, seed: int, steps: int) -> str:
    return f"start-{name}-{steps}-seed{seed}.pt"


def train(cell: Cell, path: Path) -> None:
    name, _, wrong = cell.target.partition(", ")
    target, network = get_target(name), MLP(width=128, hidden=3, seed=cell.seed)
    if wrong:
        start = start_of(name, cell.seed, cell.steps if cell.steps < 300 else 1500)
        network.load_state_dict(torch.load(path.with_name(start)))
    judge = Judge(target, cell.judged, cell.counted)

    def look(model: torch.nn.Module) -> Row:
        return judge(judge.points(model))

    before = look(network) if wrong else None
    trainer = trained(network, target, cell, seeded(cell.seed), look)
    looks = [row for row in trainer.history if "w2_squared" in row]
    row = asdict(cell) | {"before": before, "looks": looks, "floor": judge(judge.real(1001))}
    write_json(path, row)


@dataclass(frozen=True)
class WhichTraining(Study[Cell]):
    config: dict
    title: str = "Which training of a one-step network wins"

    def cells(self) -> dict[str, Cell]:
        """All runs, those of the middle batch and temperature first, seed by seed."""
        config = self.config
        problems = sorted(
            itertools.product(config.batches, config.taus),
            key=lambda p: (p[1] != config.taus[0], abs(p[0] - 400)),
        )
        cells = {}
        for (batch, tau), seed in itertools.product(problems, config.seeds):
            steps = max(config.least_steps, config.samples // batch)
            for *kind, schedule in itertools.product(
                config.targets, config.negatives, config.draws, config.solves, config.schedules
            ):
                target, negatives, draw, solve = kind
                if config.few and (negatives, draw, solve) not in FEW:
                    continue
                if negatives == "masked" and draw == "balanced":
                    continue  # is refused: it expands
                if negatives in ALSO and (draw == "balanced" or target == "checkerboard"):
                    continue  # the one presumes chance, the other needs modes
                shape = (batch, tau, seed, config.rate, schedule, steps, config.looks)
                counts = (config.judged, config.counted)
                cell = Cell(target, negatives, draw, solve, *shape, *counts)
                cells[cell.name] = cell
        return cells

    @staticmethod
    def work(cell: Cell, path: Path) -> None:
        train(cell, path)

    def table(self, rows: list[Row]) -> str:
        return table_of(means_of(rows))

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        means = means_of(rows)
        if means:
            save_figure(figure_of(means), stem.with_suffix(".png"))


KIND = ("target", "batch", "tau", "negatives", "draw", "solve", "schedule")
KEYS = ("stray", "wrong", "w2_squared", "variance_ratio", "nearest_neighbour")


def means_of(rows: list[Row]) -> list[Row]:
    """One row a training: means over seeds at the end, W₂² at equal time too."""
    groups = grouped(rows, *KIND)
    shortest = {}
    for (target, batch, tau, *_), runs in groups.items():
        seconds = statistics.fmean(run["looks"][-1]["seconds"] for run in runs)
        shortest[target, batch, tau] = min(shortest.get((target, batch, tau), seconds), seconds)
    means = []
    for key, runs in groups.items():
        ends = [run["looks"][-1] for run in runs]
        mean: Row = dict(zip(KIND, key, strict=True)) | {
            "runs": len(runs),
            "steps": runs[0]["steps"],
            "seconds": statistics.fmean(end["seconds"] for end in ends),
            "in time": statistics.fmean(
                in_time(run["looks"], shortest[key[:3]])["w2_squared"] for run in runs
            ),
            "w2_std": statistics.stdev(e["w2_squared"] for e in ends) if len(ends) > 1 else 0.0,
        }
        for name in KEYS:
            if name in ends[0]:
                mean[name] = statistics.fmean(end[name] for end in ends)
                mean[f"{name}_floor"] = statistics.fmean(run["floor"][name] for run in runs)
        if "wrong" in ends[0]:
            mean["most wrong"] = max(look["wrong"] for run in runs for look in run["looks"])
        means.append(mean)
    return means


def in_time(looks: Sequence[Row], seconds: float) -> Row:
    """The last look within a time, or the first."""
    return ([look for look in looks if look["seconds"] <= 1.02 * seconds] or looks[:1])[-1]


def table_of(means: list[Row]) -> str:
    lines = []
    for row in means:
        numbers = [f"{row[k]:.3f} ({row[f'{k}_floor']:.3f})" if k in row else "" for k in KEYS]
        spread = f" ± {row['w2_std']:.4f}" if row["runs"] > 1 else ""
        numbers[2] = f"{row['w2_squared']:.4f}{spread} ({row['w2_squared_floor']:.4f})"
        lines.append(
            (
                row["target"],
                row["batch"],
                f"{row['tau']:g}",
                row["negatives"],
                row["draw"],
                row["solve"],
                row["schedule"],
                row["runs"],
                *numbers[:2],
                f"{row['most wrong']:.3f}" if "most wrong" in row else "",
                *numbers[2:],
                f"{row['in time']:.4f}",
                f"{row['seconds']:.0f}",
            )
        )
    header = (
        "target|batch:|τ:|negatives|batches|coupling|rate|runs:|stray (real):|wrong mass:|"
        "most at any look:|W₂²:|variance ratio:|1-NN:|W₂² in the shortest time:|seconds:"
    )
    return markdown_table(header, lines)


def figure_of(means: list[Row]):
    """Every training as a bar, one column a target, one row a quantity."""
    batch, tau = means[0]["batch"], means[0]["tau"]
    mine = [row for row in means if (row["batch"], row["tau"]) == (batch, tau)]
    targets = list(dict.fromkeys(row["target"] for row in mine))
    shown = {"stray": "points between modes", "wrong": "mass in the wrong mode"}
    shown |= {"w2_squared": "$W_2^2$", "nearest_neighbour": "1-NN accuracy"}
    figure, axes = new_figure(4 * len(targets), 2.6 * len(shown) + 1.5, len(shown), len(targets))
    for i, (key, word) in enumerate(shown.items()):
        for j, target in enumerate(targets):
            panel = axes[i, j]
            bars = [row for row in mine if row["target"] == target and key in row]
            panel.set_visible(bool(bars))
            for k, row in enumerate(bars):
                color = f"C{SOLVES.index(row['solve'])}"
                hatch = None if row["draw"] == "balanced" else "///"
                alpha = 0.5 if row["schedule"] == "constant" else 1.0
                look = {"color": color, "alpha": alpha, "hatch": hatch, "edgecolor": "white"}
                panel.bar(k, row[key], **look, lw=0)
            if bars:
                panel.axhline(bars[0][f"{key}_floor"], color="0.3", ls=":")
            names = [row["negatives"] for row in bars]
            panel.set_xticks(range(len(bars)), names, rotation=90, fontsize=6)
            panel.set_ylabel(word)
            panel.set_title(target, fontsize="medium")
    words = (
        "blue: 20 sweeps, orange: converged, green: relaxed; "
        "hatched: independent batches; pale: constant rate"
    )
    figure.suptitle(
        f"Batch {batch}, τ = {tau:g}: lower is better, dotted is real against real ({words})"
    )
    return figure


def main(config) -> None:
    folder = Path(config.output)
    study = WhichTraining(config)
    starts = {}
    for cell in study.cells().values():
        name, _, wrong = cell.target.partition(", ")
        if wrong:
            steps = cell.steps if cell.steps < 300 else 1500
            starts[folder / "cells" / start_of(name, cell.seed, steps)] = (name, cell.seed, steps)
    run_missing(beginning, starts, name="beginnings", workers=config.workers)
    report = run_study(
        study,
        folder / "which_training",
        folder / "cells",
        workers=config.workers,
        limit=config.limit,
    )
    print(report.page)


if __name__ == "__main__":
    choices = {
        "targets": TARGETS,
        "negatives": list(dict.fromkeys([*NEGATIVES, *MORE, *ALSO])),
        "solves": SOLVES,
        "schedules": SCHEDULES,
    }
    run_script(main, SETTINGS, quick=QUICK, choices=choices)
