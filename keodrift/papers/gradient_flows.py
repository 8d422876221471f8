"""Six gradient flows on five planar targets (the second paper's Figs. 2 and 3), and four beside.

A cell is one network trained with one flow at one value of its hyper-parameter.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from keodrift.data import get_target
from keodrift.errors import ConvergenceWarning
from keodrift.files import atomic_path, reading
from keodrift.metrics import median_distance, mmd_squared, wasserstein_squared
from keodrift.networks import ResidualMLP
from keodrift.papers.gradient_flow_lines import LINES, best_of, draw_curves, draw_densities
from keodrift.studies import Claims, Row, Study, grouped, markdown_table
from keodrift.tasks import PlanarTask
from keodrift.training import Objective, Trainer

TARGETS = ("eight_gaussians", "two_moons", "checkerboard", "spiral", "swiss_roll")
JUDGED = 2000  # samples, against as many real points
SEEN = 1000  # of them in the exact W₂², whose time grows like the cube
NUMBERS = ("mmd_squared", "mmd_squared_floor", "w2_squared", "w2_squared_floor", "seconds")
AS_GOOD = 2.0  # up to this factor, MMD² is as good
COLLAPSED = 10.0  # from this factor on, it is another picture


@dataclass(frozen=True)
class Cell:
    """One network: its target, its flow, and how long it is trained."""

    target: str
    flow: str
    value: float
    seed: int
    steps: int
    batch: int


@dataclass(frozen=True)
class GradientFlowGrid(Study[Cell]):
    """The figures as the runs behind them.

    Attributes:
        title: What they show.
        targets: Names of planar targets, one panel each.
        values: Those of every flow's hyper-parameter.
        seeds: One run each.
        steps: Training steps of a run.
        batch: Samples, and data, a step.
    """

    title: str = "Gradient flows in the plane"
    targets: tuple[str, ...] = TARGETS
    values: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: {label: line.values for label, line in LINES.items()}
    )
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 1000
    batch: int = 256

    def cells(self) -> dict[str, Cell]:
        """All runs, seed by seed, so that an unfinished grid is one with fewer seeds."""
        return {
            f"{target}-{flow.replace(' ', '_')}-{value:g}-seed{seed}.npz": Cell(
                target, flow, value, seed, self.steps, self.batch
            )
            for seed in self.seeds
            for target in self.targets
            for flow, values in self.values.items()
            for value in values
        }

    def quick(self) -> GradientFlowGrid:
        """The same in seconds: one target, one seed, one value a flow, few and small steps."""
        middle = {flow: values[len(values) // 2 :][:1] for flow, values in self.values.items()}
        return replace(
            self, targets=self.targets[1:2], values=middle, seeds=(0,), steps=20, batch=64
        )

    @staticmethod
    def work(cell: Cell, path: Path) -> None:
        """Trains one network; stores its samples, and how close they come beside real ones."""
        line, target = LINES[cell.flow], get_target(cell.target)
        negatives = "fresh" if line.remedies else "self"
        task = PlanarTask(
            target,
            batch=cell.batch,
            balanced=line.remedies,
            negatives=negatives,
            evaluate_samples=JUDGED,
            seed=cell.seed,
        )
        # Its samples begin about as wide as the data; from a point, small kernels see one datum.
        network = ResidualMLP(noise_dim=2, width=64, blocks=3, output_std=0.1, seed=cell.seed)
        trainer = Trainer(
            network,
            task.batches(network),
            Objective(line.make(cell.value, task), negatives=negatives),
            torch.optim.Adam(network.parameters(), lr=1e-3),
            torch.Generator().manual_seed(cell.seed),
            ema=0.99 if line.remedies else 0.0,
            log_every=cell.steps,
        )
        with warnings.catch_warnings():  # a cold solve that meets its cap is what is studied
            warnings.simplefilter("ignore", ConvergenceWarning)
            trainer.run(cell.steps)
        draw = torch.Generator().manual_seed(1000 + cell.seed)
        real, other = (target.sample(JUDGED, draw) for _ in range(2))
        samples, bandwidth = task.sample(trainer.average), median_distance(real, other)
        numbers = {"seconds": trainer.history[-1]["seconds"]}
        for name, points in (("", samples), ("_floor", other)):
            numbers[f"mmd_squared{name}"] = mmd_squared(points, real, bandwidth)
            numbers[f"w2_squared{name}"] = wasserstein_squared(points, real, cap=SEEN)
        with atomic_path(path) as draft:
            np.savez(draft, samples=samples.numpy(), numbers=json.dumps(numbers))

    def rows(self, folder: Path) -> list[Row]:
        """Means over seeds, for every target, flow and value."""
        keys = ("target", "flow", "value")
        runs = []
        for cell, path in self.finished(folder):
            with reading(path), np.load(path) as stored:
                runs.append(vars(cell) | json.loads(str(stored["numbers"])))
        rows = []
        for at, found in grouped(runs, *keys).items():
            row: Row = dict(zip(keys, at, strict=True)) | {"runs": len(found)}
            for name in NUMBERS:
                row[name] = statistics.fmean(run[name] for run in found)
            scores = [run["mmd_squared"] for run in found]
            row["mmd_squared_std"] = statistics.stdev(scores) if len(scores) > 1 else 0.0
            row["mmd_squared_low"], row["mmd_squared_high"] = min(scores), max(scores)
            rows.append(row)
        return rows

    def claims(self, rows: list[Row]) -> Claims:
        """What the paper says of its figure, target by target."""
        judged: Claims = {}
        for target in self.targets:
            scores = {}
            for flow, values in self.values.items():
                scores[flow] = {
                    # Nothing is closer to the data than the data.
                    row["value"]: max(row["mmd_squared"], row["mmd_squared_floor"])
                    for row in rows
                    if (row["target"], row["flow"]) == (target, flow)
                }
                if not len(scores[flow]) == len(values) > 1:
                    del scores[flow]
            judged |= {f"{target}: {claim}": seen for claim, seen in _claims(scores).items()}
        return judged

    def table(self, rows: list[Row]) -> str:
        """One line a target and flow: at its best, and at either end of its hyper-parameter."""
        cells, done = len(self.cells()), sum(row["runs"] for row in rows)
        hours = sum(row["runs"] * row["seconds"] for row in rows) / 3600
        head = (
            f"{self.title}: {self.steps} steps of Adam at batch {self.batch}; MMD² in 10⁻³; "
            f"{cells - done} of {cells} runs are missing, the others took {hours:.1f} h."
        )
        lines = []
        bests = best_of(rows)
        for (target, flow), mine in grouped(rows, "target", "flow").items():
            best = bests[target, flow]
            low, high = (end(mine, key=lambda row: row["value"]) for end in (min, max))
            lines.append(
                (
                    target,
                    flow,
                    f"{LINES[flow].parameter} = {best['value']:g}",
                    f"{1e3 * best['mmd_squared']:.2f} ± {1e3 * best['mmd_squared_std']:.2f}",
                    f"{best['w2_squared']:.3f}",
                    *(f"{1e3 * row['mmd_squared']:.2f} at {row['value']:g}" for row in (low, high)),
                    min(row["runs"] for row in mine),
                    f"{statistics.fmean(row['seconds'] for row in mine):.0f}",
                )
            )
        for (target,), mine in grouped(rows, "target").items():
            names = ("mmd_squared_floor", "w2_squared_floor")
            mmd, w2 = (statistics.fmean(row[name] for row in mine) for name in names)
            lines.append((target, "real samples", "", f"{1e3 * mmd:.2f}", f"{w2:.3f}", *[""] * 4))
        header = (
            "target|flow|best at|MMD² there:|W₂² there:|MMD², lowest:|MMD², highest:|runs:|"
            "seconds a run:"
        )
        return f"{head}\n\n{markdown_table(header, lines)}"

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        """MMD² over τ as ``STEM.png``, densities at each flow's best as ``STEM_samples.png``."""
        if not rows:
            return
        draw_curves(rows, self.title, stem.with_suffix(".png"))
        draw, best = torch.Generator().manual_seed(0), best_of(rows)
        clouds = {(name, ""): get_target(name).sample(JUDGED, draw) for name in self.targets}
        for cell, path in self.finished(folder):
            at = cell.target, cell.flow
            if at not in clouds and cell.value == best[at]["value"]:
                with reading(path), np.load(path) as stored:
                    clouds[at] = torch.from_numpy(stored["samples"])
        draw_densities(clouds, rows, self.title, stem.with_name(f"{stem.name}_samples.png"))


def _claims(scores: dict[str, dict[float, float]]) -> Claims:
    """Claims about one target, from the MMD² of the flows that were run at every value."""

    def seen(check: Callable[..., bool], *flows: str) -> bool | None:
        known = all(flow in scores for flow in flows)
        return check(*(scores[flow] for flow in flows)) if known else None

    def best(of: dict[float, float]) -> float:
        return min(of.values())

    def good(of: dict[float, float]) -> list[float]:
        return [value for value, score in of.items() if score <= AS_GOOD * best(of)]

    six = [flow for flow, line in LINES.items() if line.paper]
    return {
        f"the six flows at their best are within a factor {AS_GOOD:g} of each other": seen(
            lambda *each: max(map(best, each)) <= AS_GOOD * min(map(best, each)), *six
        ),
        "Sinkhorn is as good as its best at the smallest τ": seen(
            lambda of: min(of) in good(of), "Sinkhorn 100"
        ),
        "Sinkhorn is so down to a smaller τ than KL, the proxy and DA2": seen(
            lambda of, *others: min(good(of)) < min(min(good(other)) for other in others),
            "Sinkhorn 100",
            "KL",
            "proxy",
            "DA2",
        ),
        "Sinkhorn is not at the largest τ": seen(
            lambda of: max(of) not in good(of), "Sinkhorn 100"
        ),
        "the proxy is as good as its best down to a smaller τ than DA2": seen(
            lambda proxy, joint: min(good(proxy)) < min(good(joint)), "proxy", "DA2"
        ),
        f"KL collapses at the smallest τ (MMD² over {COLLAPSED:g} times its best)": seen(
            lambda of: of[min(of)] > COLLAPSED * best(of), "KL"
        ),
        "sliced Wasserstein is as good as its best with any number of slices": seen(
            lambda of: len(good(of)) == len(of), "sliced"
        ),
    }
