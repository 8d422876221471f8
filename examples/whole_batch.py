"""A network trained at a batch of 100 000, end to end: python examples/whole_batch.py

Every step draws as many samples and data, solves both couplings to tol = 1e-3 and moves the
network; nothing of the size N×M is stored. Seconds a step and the peak memory of the process,
Python and torch included, are printed and kept in output.

    python examples/whole_batch.py steps=200 target=eight_gaussians
    python examples/whole_batch.py batch=10000
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from tqdm.auto import trange

import keodrift as kd
from keodrift.data import get_target, sample_target
from keodrift.files import atomic_path
from keodrift.metrics import wasserstein_squared
from keodrift.networks import MLP, sample
from keodrift.settings import run_script
from keodrift.studies import markdown_table
from keodrift.tasks import target_batches
from keodrift.training import Objective, Trainer

SETTINGS = {
    "batch": 100_000,
    "steps": 5,
    "target": "checkerboard",
    "tau": 0.05,
    "judged": 2000,  # points whose W₂² is measured
    "output": "outputs/whole_batch",
}


def main(config) -> None:
    network, random = MLP(width=128, hidden=3, seed=0), torch.Generator().manual_seed(0)
    drift = kd.SinkhornDrift(config.tau, cost="squared", tol=1e-3)
    batches = target_batches(network, get_target(config.target), config.batch)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    trainer = Trainer(network, batches, Objective(drift), optimizer, random)
    real = sample_target(config.target, config.judged, torch.Generator().manual_seed(99))

    def w2_squared() -> float:
        points = sample(network, config.judged, torch.Generator().manual_seed(97))
        return wasserstein_squared(points, real)

    begin, times = w2_squared(), []
    for step in trange(config.steps, desc="train", unit="step"):
        began = time.perf_counter()
        trainer.run(step + 1)
        times.append(time.perf_counter() - began)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kibibytes on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    header = "batch:|steps:|seconds a step:|seconds of the first:|peak MB:|W₂² before:|W₂² after:"
    numbers = (f"{statistics.median(times):.2f}", f"{times[0]:.2f}", f"{peak:.0f}")
    row = (f"{config.batch:,}", config.steps, *numbers, f"{begin:.3f}", f"{w2_squared():.3f}")
    note = f"{config.target}, τ = {config.tau:g}, {torch.get_num_threads()} threads; the median "
    page = markdown_table(header, [row]) + f"\n\n{note}step. One N×M matrix would take "
    page += f"{4e-9 * config.batch**2:.3g} GB.\n"
    with atomic_path(Path(config.output) / "whole_batch.md") as draft:
        draft.write_text(page)
    print(page)


if __name__ == "__main__":
    run_script(main, SETTINGS)
