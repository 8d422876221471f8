"""The one-sided field is Sinkhorn's first half-step. python …/one_half_step.py

A row normalisation from potentials of 0 is a softmax over data, so T = 1 half-step gives the
one-sided field without mask, number for number; more half-steps lead away from it to the converged
field (Sinkhorn drifting, Proposition 3.3).
"""

from __future__ import annotations

from pathlib import Path

import torch

import keodrift as kd
from keodrift.plots import plot_curves, save_figure


def main(folder: str | Path = "outputs/theory", most: int = 101) -> dict[str, float]:
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=random, dtype=torch.float64) for n in (60, 80))
    steps, curves, numbers = range(1, most + 1, 2), {}, {}
    for cost, tau in (("half_squared", 0.05), ("squared", 0.1), ("euclidean", 0.1)):
        one = kd.OneSidedDrift(tau, cost=cost, mask_self=False)(x, y)
        full = kd.SinkhornDrift(tau, cost=cost, tol=1e-10)(x, y)
        found = [kd.SinkhornDrift(tau, cost=cost, half_steps=t)(x, y) for t in steps]
        left = [float((v - full).norm() / full.norm()) for v in found]
        curves[f"{cost}, τ = {tau:g}"] = list(steps), left
        numbers[f"{cost}, T = 1 against one-sided"] = float((found[0] - one).abs().max())
        numbers[f"{cost}, T = 1 against converged"] = left[0]
        numbers[f"{cost}, T = {most} against converged"] = left[-1]
    figure = plot_curves(
        curves,
        title="From the one-sided field (T = 1) to the converged one",
        xlabel="half-steps T",
        ylabel="‖V_T − V_∞‖/‖V_∞‖",
    )
    save_figure(figure, Path(folder) / "one_half_step.png")
    return numbers


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
