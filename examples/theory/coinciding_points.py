"""Where the Sinkhorn field vanishes and the model is not the data. python …/coinciding_points.py

Data ½δ₋₁ + ½δ₁, both particles at their mean: V = 0 at the particles, and the divergence is not
(Sinkhorn drifting, Remark F.6). Proposition 3.7 says that V = 0 implies q = p, but for densities
that are positive on a connected domain, and for V = 0 on all of it. Here V vanishes at one point:

    V(z) = tanh(z/τ)        beside it, for particles at 0,

and spreading the model over a small interval does not change that. The rest is unstable, too: two
particles that are not quite one reach the data.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

import keodrift as kd
from keodrift.plots import plot_curves, save_figure

TAU = 0.5
DRIFT = kd.SinkhornDrift(TAU, tol=1e-10)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def main(folder: str | Path = "outputs/theory") -> dict[str, float]:
    data, rest = column(-1, 1), column(0, 0)
    domain = torch.linspace(-1.5, 1.5, 121, dtype=torch.float64)[:, None]
    curves = {}
    for spread in (0.0, 0.1, 0.5, 1.0):
        model = torch.linspace(-spread, spread, 40, dtype=torch.float64)[:, None]
        v = DRIFT.fit(model, data)(domain)[:, 0]
        curves[f"model spread over ±{spread:g}"] = domain[:, 0].tolist(), v.tolist()
    figure = plot_curves(
        curves,
        title="0 at the collapsed model, not around it",
        xlabel="z [length]",
        ylabel="V(z) [length]",
        logy=False,
    )
    save_figure(figure, Path(folder) / "coinciding_points.png")
    beside = float(DRIFT.fit(rest, data)(column(0.2)))
    apart = kd.simulate(DRIFT, column(-1e-3, 1e-3), data, 0.2, 60).final
    return {
        "V at the collapsed particles": float(DRIFT(rest, data).abs().max()),
        "Sinkhorn divergence there": float(kd.sinkhorn_divergence(rest, data, TAU)),
        "V at z = 0.2": beside,
        "its closed form": math.tanh(0.2 / TAU),
        "largest |V| on the domain, model spread over ±0.1": max(
            map(abs, curves["model spread over ±0.1"][1])
        ),
        "distance to the data from particles at ∓0.001": float((apart - data).abs().max()),
    }


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
