"""What a larger batch buys: python examples/large_batch.py

truth     the field of n samples against the closed form between Gaussians, n up to 10⁵
noise     how much the field at fixed points varies from batch to batch
quality   W₂² of trained 2D networks against the batch, at equal samples seen and at equal time
masses    a network that begins with the wrong mode masses, against the batch

In each, 20 Sinkhorn sweeps stand beside the converged field.

    python examples/large_batch.py parts=[truth,noise]
    python examples/large_batch.py quick=true

Every cell is kept in output/cells; run again, the script does what is missing. Figures, tables and
numbers land in output.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import keodrift as kd
from keodrift.data import get_target, sample_target
from keodrift.files import write_json
from keodrift.gaussians import gaussian_one_sided_drift, gaussian_sinkhorn_drift
from keodrift.metrics import wasserstein_squared
from keodrift.networks import MLP, sample
from keodrift.plots import new_figure, save_figure
from keodrift.settings import run_script
from keodrift.studies import Row, Study, markdown_table, run_study
from keodrift.tasks import target_batches
from keodrift.training import Batch, Objective, Trainer

SETTINGS = {
    "parts": ["truth", "noise", "masses", "quality"],
    "truth": {
        "sizes": [100, 316, 1000, 3162, 10_000, 31_623, 100_000],
        "dimensions": [1, 2, 4, 8],
        "taus": [0.3, 1.0, 3.0],
    },
    "noise": {"batches": [256, 1024, 4096, 16_384, 65_536], "taus": [0.1], "draws": 8},
    "quality": {
        "targets": ["eight_gaussians", "checkerboard"],
        "batches": [256, 1024, 4096, 16_384, 65_536],
        "tau": 0.05,
        "seconds": 60.0,  # of training, a cell
        "samples": 4_194_304,  # data points seen, at most
        "judged": 2000,  # points whose W₂² is measured
    },
    "masses": {"batches": [256, 1024, 4096, 16_384], "taus": [0.1], "seconds": 60.0},
    "workers": 2,
    "output": "outputs/large_batch",
}
QUICK = {
    "truth": {"sizes": [100, 316], "dimensions": [2], "taus": [1.0]},
    "noise": {"batches": [64, 128], "draws": 2},
    "quality": {"targets": ["checkerboard"], "batches": [64, 128], "seconds": 0.1, "judged": 100},
    "masses": {"batches": [64, 128], "seconds": 0.1},
    "workers": 1,
}
FIELDS = ("20 sweeps", "converged")
SWEEPS_UP_TO = 4096  # a batch beyond which 20 sweeps leave a minute only a few steps
TRUTH = {
    "Sinkhorn": (partial(kd.SinkhornDrift, tol=1e-4), gaussian_sinkhorn_drift),
    "one-sided": (partial(kd.OneSidedDrift, mask_self=False), gaussian_one_sided_drift),
}


def drift_of(field: str, tau: float):
    if field == "one-sided":
        return kd.OneSidedDrift(tau, cost="squared")
    if field == "20 sweeps":
        return kd.SinkhornDrift(tau, cost="squared", half_steps=41)
    return kd.SinkhornDrift(tau, cost="squared", tol=1e-3)


# (a) The field of n samples against the truth.


def truth(spec: dict) -> Row:
    """Mean squared error of the empirical field at 1000 fresh points of the model."""
    n, d, tau = spec["n"], spec["d"], spec["tau"]
    eye = torch.eye(d, dtype=torch.float64)
    q, p = (torch.zeros(d).double(), eye), (torch.full((d,), 1 / math.sqrt(d)).double(), eye / 4)
    rows = {}
    for name, (drift, exact) in TRUTH.items():
        errors = []
        for seed in range(3 if n <= 10_000 else 1):
            draw = torch.Generator().manual_seed(seed)
            x = torch.randn(n, d, generator=draw)
            y = torch.randn(n, d, generator=draw) / 2 + 1 / math.sqrt(d)
            z = torch.randn(1000, d, generator=draw)
            error = drift(tau).fit(x, y)(z).double() - exact(z, q, p, tau)
            errors.append(float(error.square().sum(-1).mean()))
        rows[name] = statistics.fmean(errors)
    size = float(gaussian_sinkhorn_drift(z, q, p, tau).square().sum(-1).mean())
    return {"mse": rows, "mean_square": size}


# (b) Noise of the field from batch to batch.


def noise(spec: dict) -> Row:
    """Mean variance over batches of V at 200 fixed points, half-trained eight Gaussians."""
    batch, draws = spec["batch"], spec["draws"]
    fixed = torch.Generator().manual_seed(0)
    z = sample_target("eight_gaussians", 200, fixed) + 0.2 * torch.randn(200, 2, generator=fixed)
    values, began = [], time.perf_counter()
    for seed in range(draws):
        draw = torch.Generator().manual_seed(seed + 1)
        y = sample_target("eight_gaussians", batch, draw)
        x = sample_target("eight_gaussians", batch, draw)
        x = x + 0.2 * torch.randn(batch, 2, generator=draw)
        values.append(drift_of(spec["field"], spec["tau"]).fit(x, y)(z))
    stack = torch.stack(values).double()
    return {
        "variance": float(stack.var(0).sum(-1).mean()),
        "mean_square": float(stack.mean(0).square().sum(-1).mean()),
        "seconds": (time.perf_counter() - began) / draws,
    }


# (c), (d) Networks.


def trained(
    network: MLP,
    batches: Callable[[torch.Generator], Batch],
    judge: Callable[[torch.nn.Module], dict],
    spec: dict,
) -> list[Row]:
    """Trains until the time or the samples are used up; judges a dozen times on the way."""
    size, drift = spec["batch"], drift_of(spec["field"], spec["tau"])
    optimizer = torch.optim.Adam(network.parameters(), lr=spec["lr"])
    random = torch.Generator().manual_seed(spec["seed"])
    trainer = Trainer(network, batches, Objective(drift), optimizer, random, ema=0.9)
    rows = [{"samples": 0, "seconds": 0.0, **judge(network)}]
    steps, used = max(1, spec["samples"] // size), 0.0
    while trainer.step < steps and used < spec["seconds"]:
        pace = used / trainer.step if trainer.step else spec["seconds"]
        few = min(round(spec["seconds"] / 12 / pace), -(-steps // 12), steps - trainer.step)
        began = time.perf_counter()
        trainer.run(trainer.step + max(1, few))
        used += time.perf_counter() - began
        seen = {"samples": trainer.step * size, "seconds": used}
        rows.append(seen | judge(trainer.average))
    return rows


def quality(spec: dict) -> Row:
    target, count = spec["target"], spec["judged"]
    network = MLP(width=128, hidden=3, seed=spec["seed"])
    real, other = (
        sample_target(target, count, torch.Generator().manual_seed(seed)) for seed in (99, 98)
    )

    def judge(model: torch.nn.Module) -> dict:
        points = sample(model, count, torch.Generator().manual_seed(97))
        return {"w2_squared": wasserstein_squared(points, real)}

    batches = target_batches(network, get_target(target), spec["batch"])
    rows = trained(network, batches, judge, spec)
    return {"floor": wasserstein_squared(other, real), "rows": rows}


def masses(spec: dict) -> Row:
    """From 90/10 on two modes to 50/50: how fast the share of the first mode falls."""
    network = MLP(width=128, hidden=3, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def unbalanced(random: torch.Generator) -> Batch:
        noise = torch.randn(1024, 2, generator=random)
        centre = torch.tensor([2.0, 0.0]).repeat(1024, 1)
        centre[922:] *= -1  # 90 % lie at (2, 0)
        return Batch((noise,), centre + 0.1 * torch.randn(1024, 2, generator=random))

    begin = Objective(kd.SinkhornDrift(0.1, cost="squared", tol=1e-3))
    Trainer(network, unbalanced, begin, optimizer, torch.Generator().manual_seed(0)).run(
        5 if spec["seconds"] < 5 else 600
    )

    def judge(model: torch.nn.Module) -> dict:
        points = sample(model, 20_000, torch.Generator().manual_seed(97))
        left = points[:, 0] > 0  # the heavy mode lies at (2, 0)
        between = (points[:, 0].abs() < 1.5).double().mean()
        return {"heavy": float(left.double().mean()), "between": float(between)}

    batches = target_batches(network, get_target("two_modes"), spec["batch"])
    return {"rows": trained(network, batches, judge, spec)}


# Cells, tables, figures.


def cells_of(part: str, s, samples: int) -> list[dict]:
    """The specs of one part."""
    if part == "truth":
        return [
            {"part": part, "d": d, "tau": tau, "n": n}
            for d in s.dimensions
            for tau in s.taus
            for n in s.sizes
        ]
    if part == "noise":
        return [
            {"part": part, "field": field, "batch": batch, "tau": tau, "draws": s.draws}
            for field in ("one-sided", *FIELDS)
            for batch in s.batches
            for tau in s.taus
        ]
    shared = {"seconds": s.seconds, "samples": samples, "lr": 1e-3}
    if part == "masses":
        own = [{"tau": tau, "seed": 0} for tau in s.taus]
    else:
        own = [{"tau": s.tau, "seed": 0, "target": t, "judged": s.judged} for t in s.targets]
    return [
        {"part": part, "field": field, "batch": batch} | shared | one
        for field in FIELDS
        for batch in s.batches
        if field != "20 sweeps" or batch <= SWEEPS_UP_TO
        for one in own
    ]


def name_of(spec: dict) -> str:
    skip = ("lr", "samples", "judged")
    return "-".join(str(v).replace(" ", "_") for k, v in spec.items() if k not in skip)


def by(rows: list[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Rows that share the values of keys, as they come."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def table_truth(rows: list[Row]) -> str:
    lines = []
    for (d, tau), mine in by(rows, "d", "tau").items():
        ns = [math.log(r["n"]) for r in mine]
        errors = ([math.log(r["mse"][field]) for r in mine] for field in TRUTH)
        slopes = [f"{statistics.linear_regression(ns, e).slope:.2f}" for e in errors]
        lines.append([d, f"{tau:g}", *slopes, f"{max(r['n'] for r in mine):,}"])
    return markdown_table("d:|τ:|slope, Sinkhorn:|slope, one-sided:|largest n:", lines)


def draw_truth(rows: list[Row], axes) -> None:
    for (d,), mine in by([r for r in rows if r["tau"] == 1.0], "d").items():
        errors = [r["mse"]["Sinkhorn"] / r["mean_square"] for r in mine]
        axes.plot([r["n"] for r in mine], errors, "o-", label=f"d = {d}")
    ns = sorted({r["n"] for r in rows})
    rate = [math.log(n) / math.sqrt(n) for n in ns]
    axes.plot(ns, rate, "k:", label="log(n)/√n, the proposition's rate")
    axes.set(xlabel="samples n a cloud", ylabel="mean squared error / mean ‖V‖²")
    axes.set_title("The field of n samples against the truth, τ = 1", fontsize="medium")


def table_noise(rows: list[Row]) -> str:
    lines = [
        (f"{tau:g}", field, f"{r['batch']:,}", f"{share(r):.4f}", f"{r['seconds']:.2f}")
        for (tau, field), mine in by(rows, "tau", "field").items()
        for r in mine
    ]
    return markdown_table("τ:|field|batch:|variance / mean ‖V‖²:|seconds a field:", lines)


def share(row: Row) -> float:
    return row["variance"] / row["mean_square"]


def draw_noise(rows: list[Row], axes) -> None:
    for (tau, field), mine in by(rows, "tau", "field").items():
        batches, shares = [r["batch"] for r in mine], [share(r) for r in mine]
        axes.plot(batches, shares, "o-", label=f"{field}, τ = {tau:g}")
    axes.set(xlabel="batch", ylabel="variance over batches / mean ‖V‖²")
    axes.set_title("Noise of the field at fixed points", fontsize="medium")


def budgets(rows: list[Row]) -> tuple[int, float]:
    """Samples and seconds that every run has used."""
    return min(r["rows"][-1]["samples"] for r in rows), min(r["seconds"] for r in rows)


def at(row: Row, key: str, budget: float) -> float:
    """W₂² when a budget was used up; the step that uses up the time may end a little later."""
    slack = 1.001 if key == "samples" else 1.1
    return [look for look in row["rows"] if look[key] <= budget * slack][-1]["w2_squared"]


def table_quality(rows: list[Row]) -> str:
    samples, seconds = budgets(rows)
    lines = []
    for r in sorted(rows, key=lambda r: (r["target"], r["field"], r["batch"])):
        w2 = (at(r, "samples", samples), at(r, "seconds", seconds), r["floor"])
        w2_samples, w2_seconds, floor = (f"{value:.3f}" for value in w2)
        steps = r["rows"][-1]["samples"] // r["batch"]
        begin = (r["target"], r["field"], f"{r['batch']:,}")
        lines.append((*begin, w2_samples, w2_seconds, steps, floor))
    header = "target|field|batch:|W₂² at equal samples:|W₂² at equal time:|steps:|floor:"
    note = f"Equal samples: {samples:,}. Equal time: {seconds:.0f} s on one core."
    return f"{markdown_table(header, lines)}\n\n{note}"


def draw_quality(rows: list[Row], panels) -> None:
    samples, seconds = budgets(rows)
    for panel, key, budget, words in (
        (panels[0], "samples", samples, f"{samples:,} samples"),
        (panels[1], "seconds", seconds, f"{seconds:.0f} s"),
    ):
        for k, ((target, field), mine) in enumerate(by(rows, "target", "field").items()):
            w2 = [at(r, key, budget) for r in mine]
            label = f"{target}, {field}"
            panel.plot([r["batch"] for r in mine], w2, "o-", color=f"C{k}", label=label)
        panel.set(xlabel="batch", ylabel="$W_2^2$ to the data [length$^2$]")
        panel.set_title(f"Networks after {words}", fontsize="medium")


def table_masses(rows: list[Row]) -> str:
    lines = []
    for r in sorted(rows, key=lambda r: (r["tau"], r["field"], r["batch"])):
        reached = [look["seconds"] for look in r["rows"] if look["heavy"] <= 0.55]
        end = [f"{r['rows'][-1][key]:.3f}" for key in ("heavy", "between")]
        when = f"{reached[0]:.0f}" if reached else "not reached"
        lines.append((f"{r['tau']:g}", r["field"], f"{r['batch']:,}", *end, when))
    header = "τ:|field|batch:|heavy mode at the end:|between the modes:|seconds to 55 %:"
    return markdown_table(header, lines)


def draw_masses(rows: list[Row], axes) -> None:
    colours = sorted({(r["tau"], r["batch"]) for r in rows})
    for r in sorted(rows, key=lambda r: (r["tau"], r["field"], r["batch"])):
        color = f"C{colours.index((r['tau'], r['batch']))}"
        label = f"{r['field']}, {r['batch']:,}, τ = {r['tau']:g}"
        times, heavy = zip(*((look["seconds"], look["heavy"]) for look in r["rows"]), strict=True)
        axes.plot(times, heavy, "-" if r["field"] == "converged" else ":", color=color, label=label)
    axes.axhline(0.5, color="0.5", lw=0.8)
    axes.set(xlabel="training time [s]", ylabel="share of the heavy mode")
    axes.set_title("From 90/10 to 50/50", fontsize="medium")


PARTS = {
    "truth": ("The field of n samples against the truth", truth, table_truth, draw_truth),
    "noise": ("Noise from batch to batch", noise, table_noise, draw_noise),
    "quality": ("Networks", quality, table_quality, draw_quality),
    "masses": ("Wrong mode masses", masses, table_masses, draw_masses),
}


@dataclass(frozen=True)
class LargeBatch(Study[dict]):
    config: dict
    title: str = "What a larger batch buys"

    def cells(self) -> dict[str, dict]:
        samples = self.config.quality.samples
        parts = (cells_of(part, self.config[part], samples) for part in self.config.parts)
        return {f"{name_of(spec)}.json": spec for specs in parts for spec in specs}

    @staticmethod
    def work(spec: dict, path: Path) -> None:
        _, numbers, _, _ = PARTS[spec["part"]]
        write_json(path, spec | numbers(spec))

    def table(self, rows: list[Row]) -> str:
        parts = by(rows, "part")
        return "\n\n".join(
            f"## {title}\n\n{table(parts[part,])}"
            for part, (title, _, table, _) in PARTS.items()
            if (part,) in parts
        )

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        figure, axes = new_figure(11, 12, 3, 2)
        places = dict(zip(PARTS, (axes[0, 0], axes[0, 1], axes[1], axes[2, 0]), strict=True))
        for (part,), mine in by(rows, "part").items():
            *_, paint = PARTS[part]
            paint(mine, places[part])
        for panel in axes.flat:
            if not panel.lines:
                panel.set_axis_off()
                continue
            scale = "linear" if panel is axes[2, 0] else "log"
            panel.set_xscale(scale)
            panel.set_yscale(scale)
            panel.grid(alpha=0.3, lw=0.4)
            panel.legend(fontsize="x-small")
        figure.suptitle("What a larger batch buys, field and network")
        save_figure(figure, stem.with_suffix(".png"))


def main(config) -> None:
    study, folder = LargeBatch(config), Path(config.output)
    report = run_study(study, folder / "large_batch", folder / "cells", workers=config.workers)
    print(report.page)


if __name__ == "__main__":
    run_script(main, SETTINGS, quick=QUICK, choices={"parts": SETTINGS["parts"]})
