"""Mass between far modes: which field moves it? python …/far_modes.py

Two atoms at 0 and D; data hold w_p = 0.6 at 0, the model w_q = 0.3. With κ = exp(−D²/2τ), and B =
w_p/(1−w_p) − w_q/(1−w_q), the velocity of the crowded atom at D is, to leading order,

    one-sided (score)   −D κ B
    proxy               −D κ B √((1−w_p)/w_q)
    Algorithm 2         −D κ B √((1−w_q)/w_q)·(1−w_p)/(2−w_p−w_q)
    Sinkhorn, W₂        −D (w_p−w_q)/(1−w_q)

so all but the last vanish with κ, and are lost below rounding (On the Wasserstein gradient flow
interpretation of drifting models, section 3.3; Appendix D suspects the third line).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

import keodrift as kd
from keodrift.plots import new_figure, save_figure

W_P, W_Q = 0.6, 0.3
ODDS = W_P / (1 - W_P) - W_Q / (1 - W_Q)
PREDICTED = {  # −V/D over κ; for Sinkhorn −V/D itself
    "one-sided": ODDS,
    "proxy": ODDS * math.sqrt((1 - W_P) / W_Q),
    "Algorithm 2": ODDS * math.sqrt((1 - W_Q) / W_Q) * (1 - W_P) / (2 - W_P - W_Q),
    "Sinkhorn": (W_P - W_Q) / (1 - W_Q),
}


def drifts(tau: float) -> dict[str, kd.Drift]:
    return {
        "one-sided": kd.OneSidedDrift(tau, mask_self=False),
        "proxy": kd.SinkhornProxyDrift(tau, mask_self=False),
        "Algorithm 2": kd.TwoSidedDrift(tau, form="joint", mask_self=False),
        "Sinkhorn": kd.SinkhornDrift(tau, tol=1e-12),
    }


def velocity(drift: kd.Drift, distance: float) -> float:
    """−V/D at the crowded atom."""
    atoms = torch.tensor([[0.0], [distance]], dtype=torch.float64)
    a, b = (torch.tensor([w, 1 - w], dtype=torch.float64) for w in (W_Q, W_P))
    return 0.0 - float(drift(atoms, atoms, x_weights=a, y_weights=b)[1, 0]) / distance


def main(folder: str | Path = "outputs/theory", most: int = 60) -> dict[str, float]:
    gaps = list(range(2, most + 1, 2))  # D²/2τ
    figure, grid = new_figure(6.5, 4.4)
    axes, numbers = grid[0, 0], {}
    for colour, (name, factor) in enumerate(PREDICTED.items()):
        for tau, marker in ((0.1, "o"), (10.0, "x")):
            found = [velocity(drifts(tau)[name], math.sqrt(2 * gap * tau)) for gap in gaps]
            axes.plot(gaps, [abs(v) for v in found], marker, color=f"C{colour}", ms=4)
        known = [factor * (1 if name == "Sinkhorn" else math.exp(-gap)) for gap in gaps]
        axes.plot(gaps, known, color=f"C{colour}", lw=1, label=name)
        numbers[f"{name}, over its prediction at gap/τ = 12"] = found[5] / known[5]
        numbers[f"{name}, −V/D at gap/τ = {gaps[-1]}"] = found[-1]
    axes.set_yscale("log")
    axes.set_ylim(1e-19, 3)
    axes.axhline(torch.finfo(torch.float64).eps, color="0.5", ls=":", label="rounding")
    axes.set(xlabel="gap/τ = D²/2τ", ylabel="|V|/D at the crowded mode")
    axes.set_title("Lines: predictions; dots, crosses: fields at τ = 0.1, 10", fontsize=10)
    axes.legend(fontsize=8)
    save_figure(figure, Path(folder) / "far_modes.png")
    return numbers


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
