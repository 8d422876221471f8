"""Converged, the particles' mean moves onto the data's. python …/equal_means.py

Σ aᵢVᵢ is the difference of the means, ȳ − x̄, exactly where both couplings have exact marginals.
Short of that it is off by no more than their L1 errors times the radii of the clouds: the marginal
error that a field reports is a bound on its total momentum.
"""

from __future__ import annotations

from pathlib import Path

import torch

import keodrift as kd
from keodrift.plots import plot_curves, save_figure


def main(folder: str | Path = "outputs/theory", most: int = 81) -> dict[str, float]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=random, dtype=torch.float64)
    y = 0.5 * torch.randn(80, 2, generator=random, dtype=torch.float64) + 1
    weights = {"x_weights": torch.rand(60, generator=random, dtype=torch.float64)}
    a = weights["x_weights"] / weights["x_weights"].sum()
    means = y.mean(0) - a @ x
    radii = sum(float((z - z.mean(0)).norm(dim=-1).max()) for z in (x, y))

    def off(**options) -> tuple[float, float]:
        field = kd.SinkhornDrift(0.1, **options).fit(x, y, **weights)
        return float((a @ field() - means).norm()), radii * float(field.marginal_error)

    steps = range(1, most + 1, 2)
    found, bounds = zip(*(off(half_steps=t) for t in steps), strict=True)
    figure = plot_curves(
        {"‖Σ aV − (ȳ − x̄)‖": (steps, found), "marginal error × radii": (steps, bounds)},
        title="The mean drift is as exact as the marginals",
        xlabel="half-steps T",
        ylabel="length",
    )
    save_figure(figure, Path(folder) / "equal_means.png")
    return {
        "difference of the means": float(means.norm()),
        "off after one half-step": found[0],
        f"off after {most} half-steps": found[-1],
        "off at tol = 1e-12": off(tol=1e-12)[0],
        "largest share of the bound": max(f / b for f, b in zip(found, bounds, strict=True)),
    }


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
