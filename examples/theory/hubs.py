"""What a crowd does to a datum: hub suppression. python …/hubs.py

Two data at ∓1, and a share w > ½ of the model around the first, the hub. A query half-way sees both
at the same distance, so its softmax shows what columns alone do. The hub's share of it is

    one-sided    ½
    two-sided    1/(1 + √(w/(1−w)))       columns enter by their square root
    Sinkhorn     1/(1 + (2w−1)/κ)         κ = exp(−2/τ): no more is drawn than the hub can take

(On the Wasserstein gradient flow interpretation of drifting models, Appendix C.)
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

import keodrift as kd
from keodrift.plots import plot_curves, save_figure

TAU = 0.25
DRIFTS = {
    "one-sided": kd.OneSidedDrift(TAU, mask_self=False),
    "two-sided": kd.TwoSidedDrift(TAU, mask_self=False),
    "Sinkhorn": kd.SinkhornDrift(TAU, tol=1e-12),
}


def predicted(name: str, w: float) -> float:
    odds = {
        "one-sided": 1.0,
        "two-sided": math.sqrt(w / (1 - w)),
        "Sinkhorn": (2 * w - 1) * math.exp(2 / TAU),
    }
    return 1 / (1 + odds[name])


def hub_share(drift: kd.SoftmaxDrift, w: float) -> float:
    atoms = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    field = drift.fit(atoms, atoms, x_weights=torch.tensor([w, 1 - w], dtype=torch.float64))
    middle = torch.zeros(1, 1, dtype=torch.float64)
    return (1 - float(field.data.kernel(middle).barycentre(field.data.bias))) / 2


def main(folder: str | Path = "outputs/theory") -> dict[str, float]:
    crowds = [0.5 + 0.02 * k for k in range(1, 25)]
    curves, numbers = {}, {}
    for name, drift in DRIFTS.items():
        found = [hub_share(drift, w) for w in crowds]
        known = [predicted(name, w) for w in crowds]
        curves[name] = crowds, found
        off = max(abs(f / k - 1) for f, k in zip(found, known, strict=True))
        numbers[f"{name}, share of the hub at w = {crowds[19]:.1f}"] = found[19]
        numbers[f"{name}, largest relative error of the prediction"] = off
    figure = plot_curves(
        curves,
        title="The more crowd around a datum, the less it draws others",
        xlabel="share w of the model around the hub",
        ylabel="the hub's share of a query half-way",
    )
    save_figure(figure, Path(folder) / "hubs.png")
    return numbers


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
