"""What a larger batch buys: python examples/large_batch.py

truth     the field of n samples against the closed form between Gaussians, n up to 10⁵
noise     how much the field at fixed points varies from batch to batch
quality   W₂² of trained 2D generators against the batch, at equal samples seen and at equal time
masses    a generator that begins with the wrong mode masses, against the batch

In each, 20 Sinkhorn sweeps stand beside the converged field.

    python examples/large_batch.py parts=[truth,noise]
    python examples/large_batch.py quick=true

Every cell is kept in output/cells; run again, the script does what is missing. Figures, tables and
numbers land in output.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from wrong_masses import configured, draw, wrong

import keodrift as kd
from keodrift.data import get_target, sample_target
from keodrift.files import atomic_path, write_json
from keodrift.gaussians import gaussian_one_sided_drift, gaussian_sinkhorn_drift
from keodrift.metrics import wasserstein_squared
from keodrift.networks import MLP, sample
from keodrift.plots import new_figure, save_figure
from keodrift.reproduce.cells import run_missing
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
    },
    "masses": {"batches": [256, 1024, 4096, 16_384], "taus": [0.1], "seconds": 60.0},
    "workers": 2,
    "quick": False,
    "output": "outputs/large_batch",
}
QUICK = {
    "truth": {"sizes": [100, 316], "dimensions": [2], "taus": [1.0]},
    "noise": {"batches": [64, 128], "draws": 2},
    "quality": {"targets": ["checkerboard"], "batches": [64, 128], "seconds": 1.0},
    "masses": {"batches": [64, 128], "seconds": 1.0},
    "workers": 1,
}
FIELDS = ("20 sweeps", "converged")
SWEEPS_UP_TO = 4096  # a batch beyond which 20 sweeps leave a minute only a few steps
TRUTH = {"Sinkhorn": gaussian_sinkhorn_drift, "one-sided": gaussian_one_sided_drift}


def drift_of(field: str, tau: float):
    if field == "one-sided":
        return kd.OneSidedDrift(tau, cost="squared")
    if field == "20 sweeps":
        return kd.SinkhornDrift(tau, cost="squared", iterations=41)
    return kd.SinkhornDrift(tau, cost="squared", tol=1e-3)


# (a) The field of n samples against the truth.


def truth(spec: dict, path: Path) -> None:
    """Mean squared error of the empirical field at 1000 fresh points of the model."""
    n, d, tau = spec["n"], spec["d"], spec["tau"]
    eye = torch.eye(d, dtype=torch.float64)
    q, p = (torch.zeros(d).double(), eye), (torch.full((d,), 1 / math.sqrt(d)).double(), eye / 4)
    rows = {}
    for name, exact in TRUTH.items():
        recipe = (
            kd.SinkhornDrift(tau, tol=1e-4)
            if name == "Sinkhorn"
            else kd.OneSidedDrift(tau, mask_self=False)
        )
        errors = []
        for seed in range(3 if n <= 10_000 else 1):
            draw = torch.Generator().manual_seed(seed)
            x = torch.randn(n, d, generator=draw)
            y = torch.randn(n, d, generator=draw) / 2 + 1 / math.sqrt(d)
            z = torch.randn(1000, d, generator=draw)
            error = recipe.fit(x, y)(z).double() - exact(z, q, p, tau)
            errors.append(float(error.square().sum(-1).mean()))
        rows[name] = statistics.fmean(errors)
    size = float(gaussian_sinkhorn_drift(z, q, p, tau).square().sum(-1).mean())
    write_json(path, spec | {"mse": rows, "mean_square": size})


# (c) Noise of the field from batch to batch.


def noise(spec: dict, path: Path) -> None:
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
    write_json(
        path,
        spec
        | {
            "variance": float(stack.var(0).sum(-1).mean()),
            "mean_square": float(stack.mean(0).square().sum(-1).mean()),
            "seconds": (time.perf_counter() - began) / draws,
        },
    )


# (b), (d) Generators.


def trained(
    network: MLP,
    batches: Callable[[torch.Generator], Batch],
    drift,
    size: int,
    spec: dict,
    judge: Callable[[torch.nn.Module], dict],
) -> list[dict]:
    """Trains until the time or the samples are used up; judges a dozen times on the way."""
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


def quality(spec: dict, path: Path) -> None:
    target, size = spec["target"], spec["batch"]
    network = MLP(width=128, hidden=3, seed=spec["seed"])
    real = sample_target(target, 2000, torch.Generator().manual_seed(99))
    other = sample_target(target, 2000, torch.Generator().manual_seed(98))

    def judge(model: torch.nn.Module) -> dict:
        points = sample(model, 2000, torch.Generator().manual_seed(97))
        return {"w2": wasserstein_squared(points, real)}

    drift = drift_of(spec["field"], spec["tau"])
    rows = trained(
        network, target_batches(network, get_target(target), size), drift, size, spec, judge
    )
    write_json(path, spec | {"floor": wasserstein_squared(other, real), "rows": rows})


def masses(spec: dict, path: Path) -> None:
    """From 90/10 on two modes to 50/50: how fast the share of the first mode falls."""
    size = spec["batch"]
    network = MLP(width=128, hidden=3, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def unbalanced(random: torch.Generator) -> Batch:
        noise = torch.randn(1024, 2, generator=random)
        return Batch((noise,), draw(wrong(2), 1024, 2, random))

    begin = Objective(kd.SinkhornDrift(0.1, cost="squared", tol=1e-3))
    Trainer(network, unbalanced, begin, optimizer, torch.Generator().manual_seed(0)).run(
        5 if spec["seconds"] < 5 else 600
    )

    def judge(model: torch.nn.Module) -> dict:
        points = sample(model, 20_000, torch.Generator().manual_seed(97))
        left = points[:, 0] > 0  # the heavy mode lies at (2, 0)
        between = (points[:, 0].abs() < 1.5).double().mean()
        return {"heavy": float(left.double().mean()), "between": float(between)}

    drift = drift_of(spec["field"], spec["tau"])
    batches = target_batches(network, get_target("two_modes"), size)
    write_json(path, spec | {"rows": trained(network, batches, drift, size, spec, judge)})


# Cells, figures, tables.

WORK = {"truth": truth, "noise": noise, "quality": quality, "masses": masses}


def work(spec: dict, path: Path) -> None:
    WORK[spec["part"]](spec, path)


def cells_of(config) -> list[dict]:
    cells: list[dict] = []
    for part in config.parts:
        s = config[part]
        if part == "truth":
            for d in s.dimensions:
                cells += [
                    {"part": part, "d": d, "tau": tau, "n": n} for tau in s.taus for n in s.sizes
                ]
            continue
        fields = ("one-sided", *FIELDS) if part == "noise" else FIELDS
        for field in fields:
            for batch in s.batches:
                if part != "noise" and field == "20 sweeps" and batch > SWEEPS_UP_TO:
                    continue
                spec = {"part": part, "field": field, "batch": batch}
                if part == "noise":
                    cells += [spec | {"tau": tau, "draws": s.draws} for tau in s.taus]
                    continue
                spec |= {"seconds": s.seconds, "samples": config.quality.samples, "lr": 1e-3}
                if part == "masses":
                    cells += [spec | {"tau": tau, "seed": 0} for tau in s.taus]
                else:
                    cells += [spec | {"tau": s.tau, "seed": 0, "target": t} for t in s.targets]
    return cells


def name_of(spec: dict) -> str:
    skip = ("lr", "samples")
    return "-".join(str(v).replace(" ", "_") for k, v in spec.items() if k not in skip)


def figure_truth(rows: list[dict], axes) -> list[str]:
    lines = [
        "| d | τ | slope, Sinkhorn | slope, one-sided | largest n |",
        "|---:|---:|---:|---:|---:|",
    ]
    for d in dict.fromkeys(r["d"] for r in rows):
        for tau in dict.fromkeys(r["tau"] for r in rows):
            mine = sorted((r for r in rows if (r["d"], r["tau"]) == (d, tau)), key=lambda r: r["n"])
            slopes = []
            for field in TRUTH:
                xs = [math.log(r["n"]) for r in mine]
                ys = [math.log(r["mse"][field]) for r in mine]
                slopes.append(statistics.linear_regression(xs, ys).slope)
            lines.append(
                f"| {d} | {tau:g} | {slopes[0]:.2f} | {slopes[1]:.2f} | {mine[-1]['n']:,} |"
            )
            if tau == 1.0:
                panel = [r["mse"]["Sinkhorn"] / r["mean_square"] for r in mine]
                axes.plot([r["n"] for r in mine], panel, "o-", label=f"d = {d}")
    ns = sorted({r["n"] for r in rows})
    rate = [math.log(n) / math.sqrt(n) for n in ns]
    axes.plot(ns, rate, "k:", label="log(n)/√n, the proposition's rate")
    axes.set_xlabel("samples n a cloud")
    axes.set_ylabel("mean squared error / mean ‖V‖²")
    axes.set_title("The field of n samples against the truth, τ = 1", fontsize="medium")
    return lines


def figure_noise(rows: list[dict], axes) -> list[str]:
    lines = [
        "| τ | field | batch | variance / mean ‖V‖² | seconds a field |",
        "|---:|---|---:|---:|---:|",
    ]
    for tau, field in dict.fromkeys((r["tau"], r["field"]) for r in rows):
        mine = sorted(
            (r for r in rows if (r["tau"], r["field"]) == (tau, field)), key=lambda r: r["batch"]
        )
        share = [r["variance"] / r["mean_square"] for r in mine]
        axes.plot([r["batch"] for r in mine], share, "o-", label=f"{field}, τ = {tau:g}")
        lines += [
            f"| {tau:g} | {field} | {r['batch']:,} | {s:.4f} | {r['seconds']:.2f} |"
            for r, s in zip(mine, share, strict=True)
        ]
    axes.set_xlabel("batch")
    axes.set_ylabel("variance over batches / mean ‖V‖²")
    axes.set_title("Noise of the field at fixed points", fontsize="medium")
    return lines


def at(rows: list[dict], key: str, value: float) -> dict:
    """The last row before a budget was used up."""
    return [row for row in rows if row[key] <= value * 1.001][-1]


def figure_quality(rows: list[dict], panels) -> list[str]:
    lines = [
        "| target | field | batch | W₂² at equal samples | W₂² at equal time | steps | floor |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    equal = min(r["rows"][-1]["samples"] for r in rows)
    spent = min(r["seconds"] for r in rows)
    for r in sorted(rows, key=lambda r: (r["target"], r["field"], r["batch"])):
        samples = at(r["rows"], "samples", equal)["w2"]
        timed = at(r["rows"], "seconds", spent * 1.1)["w2"]
        steps = r["rows"][-1]["samples"] // r["batch"]
        lines.append(
            f"| {r['target']} | {r['field']} | {r['batch']:,} | {samples:.3f} | {timed:.3f} | "
            f"{steps} | {r['floor']:.3f} |"
        )
    for key, panel, words in (
        ("samples", panels[0], f"after {equal:,} samples"),
        ("seconds", panels[1], f"after {spent:.0f} s"),
    ):
        budget = equal if key == "samples" else spent * 1.1
        for k, (target, field) in enumerate(dict.fromkeys((r["target"], r["field"]) for r in rows)):
            mine = [r for r in rows if (r["target"], r["field"]) == (target, field)]
            line = sorted((r["batch"], at(r["rows"], key, budget)["w2"]) for r in mine)
            panel.plot(*zip(*line, strict=True), "o-", color=f"C{k}", label=f"{target}, {field}")
        panel.set_xlabel("batch")
        panel.set_ylabel("$W_2^2$ to the data [length$^2$]")
        panel.set_title(f"Generators {words}", fontsize="medium")
    return [*lines, "", f"Equal samples: {equal:,}. Equal time: {spent:.0f} s on one core."]


def figure_masses(rows: list[dict], axes) -> list[str]:
    lines = [
        "| τ | field | batch | heavy mode at the end | between the modes | seconds to 55 % |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    colours = sorted({(r["tau"], r["batch"]) for r in rows})
    for r in sorted(rows, key=lambda r: (r["tau"], r["field"], r["batch"])):
        k, name = colours.index((r["tau"], r["batch"])), f"{r['field']}, {r['batch']:,}"
        times, heavy = zip(*((row["seconds"], row["heavy"]) for row in r["rows"]), strict=True)
        style = "-" if r["field"] == "converged" else ":"
        axes.plot(times, heavy, style, color=f"C{k}", label=f"{name}, τ = {r['tau']:g}")
        reached = [row["seconds"] for row in r["rows"] if row["heavy"] <= 0.55]
        when = f"{reached[0]:.0f}" if reached else "not reached"
        lines.append(
            f"| {r['tau']:g} | {r['field']} | {r['batch']:,} | {heavy[-1]:.3f} | "
            f"{r['rows'][-1]['between']:.3f} | {when} |"
        )
    axes.axhline(0.5, color="0.5", lw=0.8)
    axes.set_xlabel("training time [s]")
    axes.set_ylabel("share of the heavy mode")
    axes.set_title("From 90/10 to 50/50", fontsize="medium")
    return lines


def main(arguments: list[str]) -> None:
    config = configured(SETTINGS, QUICK, arguments)
    folder = Path(config.output)
    cells = {folder / "cells" / f"{name_of(spec)}.json": spec for spec in cells_of(config)}
    run_missing(work, cells, name="large batch", workers=config.workers)
    rows = [json.loads(path.read_text()) for path in cells]
    figure, axes = new_figure(11, 12, 3, 2)
    sections = []
    titles = {
        "truth": ("The field of n samples against the truth", axes[0, 0]),
        "noise": ("Noise from batch to batch", axes[0, 1]),
        "quality": ("Generators", axes[1]),
        "masses": ("Wrong mode masses", axes[2, 0]),
    }
    draw = {
        "truth": figure_truth,
        "noise": figure_noise,
        "quality": figure_quality,
        "masses": figure_masses,
    }
    for part, (title, panels) in titles.items():
        mine = [row for row in rows if row["part"] == part]
        if mine:
            sections += [f"## {title}", "", *draw[part](mine, panels), ""]
    for panel in axes.flat:
        if panel.lines:
            panel.set_xscale("linear" if panel is axes[2, 0] else "log")
            panel.set_yscale("linear" if panel is axes[2, 0] else "log")
            panel.grid(alpha=0.3, lw=0.4)
            panel.legend(fontsize="x-small")
        else:
            panel.set_axis_off()
    figure.suptitle("What a larger batch buys, field and generator")
    save_figure(figure, folder / "large_batch.png")
    page = "\n".join(sections)
    with atomic_path(folder / "large_batch.md") as draft:
        draft.write_text(page)
    print(page)


if __name__ == "__main__":
    main(sys.argv[1:])
