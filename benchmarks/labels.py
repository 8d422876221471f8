"""Many classes in one call, beside every engine on one class after the other.

    python benchmarks/labels.py
    python benchmarks/labels.py sizes=[64] classes=100 half_steps=[41]

Classes of digits' latents (as in costs.py, six principal components), as many points of each as
``sizes`` says; their field once by labels, once class by class with each engine, once as a batch
that is stored. The median of ``repeats`` in turn, in one process, after a call that compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from common import begin, machine, markdown, seconds_in_turn

import keodrift as kd
from keodrift.data import load_digits_latents
from keodrift.files import write_json

SETTINGS = {
    "classes": 10,
    "sizes": [64, 256, 1000],  # points of a class
    "d": 6,
    "tau": 0.05,  # in mean costs of a class
    "half_steps": [41, None],  # 20 sweeps, and solved to tol
    "tol": 1e-3,
    "repeats": 9,
    "device": "cpu",
    "name": "labels",
    "output": "outputs/labels",
}
LABELS = "labels, one call"


def clouds(classes: int, size: int, d: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A half-trained model and data of every class, ``(classes, size, d)``."""
    latents = load_digits_latents(d)
    random = torch.Generator().manual_seed(0)
    both = []
    for noise in (0.5, 0.1):
        drawn = torch.randn(classes, size, d, generator=random) * noise
        for k in range(classes):
            own = latents.train[latents.train_labels == k % latents.classes]
            drawn[k] += own[torch.randint(len(own), (size,), generator=random)]
        both.append(drawn.to(device))
    return both[0], both[1]


def calls(
    drift: kd.SinkhornDrift, x: torch.Tensor, y: torch.Tensor
) -> dict[str, Callable[[], object]]:
    """Ways to the same field, by name."""
    labels = torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])
    points, data = x.flatten(0, 1), y.flatten(0, 1)

    stored = replace(drift, backend="dense")
    ways = {LABELS: lambda: drift(points, data, x_labels=labels, y_labels=labels)}
    ways["dense, as a batch"] = lambda: stored(x, y)
    for name in ("dense", "tiled", "keops"):
        ways[f"{name}, one by one"] = partial(one_by_one, replace(drift, backend=name), x, y)
    return ways


def one_by_one(drift: kd.SinkhornDrift, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    return [drift(*clouds) for clouds in zip(x, y, strict=True)]


def main(options) -> None:
    report = {"machine": machine(options.device), "classes": options.classes, "rows": []}
    report |= {key: options[key] for key in ("d", "tau", "tol")}
    for size in options.sizes:
        x, y = clouds(options.classes, size, options.d, options.device)
        for half_steps in options.half_steps:
            drift = kd.SinkhornDrift(
                options.tau, relative=True, cost="squared", half_steps=half_steps, tol=options.tol
            )
            took = seconds_in_turn(calls(drift, x, y), options.device, options.repeats)
            for way, found in took.items():
                row = {"size": size, "half_steps": half_steps, "way": way, "seconds": found}
                report["rows"].append(row)
                print(row, flush=True)
            write_json(Path(options.output) / f"{options.name}.json", report)
    print(f"\n{table(report)}")


def table(report: dict) -> str:
    lines = []
    rows = report["rows"]
    for row in rows:
        same = [r for r in rows if (r["size"], r["half_steps"]) == (row["size"], row["half_steps"])]
        ours = next(r["seconds"] for r in same if r["way"] == LABELS)
        how = f"{row['half_steps'] // 2} sweeps" if row["half_steps"] else f"tol {report['tol']:g}"
        ms, ratio = f"{1e3 * row['seconds']:.1f}", f"{row['seconds'] / ours:.2f}×"
        lines.append([f"{row['size']} a class, {how}, {row['way']}", ms, ratio])
    words = (
        f"{report['classes']} classes, N = M in each, d = {report['d']}, "
        f"τ = {report['tau']:g} mean costs. Measured on {report['machine']}."
    )
    return markdown(["field of all classes", "ms", "to one call"], lines) + f"\n\n{words}"


if __name__ == "__main__":
    begin(main, SETTINGS)
