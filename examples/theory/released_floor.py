"""Does Algorithm 2 move mass between far modes? python …/released_floor.py

As printed it does not: its velocity vanishes with κ = exp(−gap/τ), as far_modes.py shows. As
released it raises every pair of its coupling A to φ = 1e-3, which no gap makes smaller. With m
data and n particles at the starved mode, m′ and n′ at the crowded one, and pairs across the gap at
the floor, rows hold s⁺ = m′/√(n′(m′+n′)) + φm and s⁻ = n′/√(n′(m′+n′)) + φn, and

    V = −D φ (s⁻m − s⁺n):

the floor moves mass where the kernel no longer does, the faster the larger the batch, whatever τ.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

import keodrift as kd
from keodrift.plots import plot_curves, save_figure

FLOOR = 1e-3
DATA, MODEL = 0.6, 0.3  # shares at the starved mode


def predicted(size: int) -> float:
    """−V/D where the kernel sees nothing across the gap."""
    m, n = DATA * size, MODEL * size
    crowd = math.sqrt((size - n) * (2 * size - m - n))
    data, model = (size - m) / crowd + FLOOR * m, (size - n) / crowd + FLOOR * n
    return FLOOR * (model * m - data * n)


def velocity(drift: kd.Drift, distance: float, size: int) -> float:
    """−V/D of a particle at the crowded mode."""
    y, x = (
        distance * (torch.arange(size) >= round(share * size)).double()[:, None]
        for share in (DATA, MODEL)
    )
    return 0.0 - float(drift(x, y)[-1, 0]) / distance


def main(folder: str | Path = "outputs/theory") -> dict[str, float]:
    gaps, curves, numbers = list(range(1, 41, 3)), {}, {}

    def curve(drift: kd.Drift, size: int) -> list[float]:
        return [velocity(drift, math.sqrt(2 * gap), size) for gap in gaps]

    joint = {"form": "joint", "mask_self": False}
    curves["Algorithm 2, as printed"] = gaps, curve(kd.TwoSidedDrift(1.0, **joint), 100)
    for size in (20, 100, 500):
        found = curve(kd.TwoSidedDrift(1.0, floor=FLOOR, **joint), size)
        curves[f"as released, {size} particles"] = gaps, found
        numbers[f"released, {size} particles, −V/D at gap/τ = 40"] = found[-1]
        numbers[f"predicted, {size} particles"] = predicted(size)
    curves["Sinkhorn"] = gaps, curve(kd.SinkhornDrift(1.0, tol=1e-10), 100)
    numbers["printed, −V/D at gap/τ = 40"] = curves["Algorithm 2, as printed"][1][-1]
    figure = plot_curves(
        curves,
        title="The floor moves mass across any gap, in proportion to the batch",
        xlabel="gap/τ = D²/2τ",
        ylabel="−V/D at the crowded mode",
    )
    figure.axes[0].set_ylim(1e-10, 2)
    save_figure(figure, Path(folder) / "released_floor.png")
    return numbers


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
