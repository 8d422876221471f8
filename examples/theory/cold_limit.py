"""As τ → 0 the Sinkhorn field is exact transport. python …/cold_limit.py

n particles and n data: the coupling becomes a permutation σ and the self coupling the identity, so
Vᵢ → y_σ(i) − xᵢ, mean ‖V‖² → W₂², and V = 0 only where the clouds are permutations of each other
(Sinkhorn drifting, Proposition 3.10). What is left at τ > 0 falls as exp(−c/τ).
"""

from __future__ import annotations

from pathlib import Path

import ot
import torch

import keodrift as kd
from keodrift.plots import plot_curves, save_figure


def main(folder: str | Path = "outputs/theory", n: int = 16) -> dict[str, float]:
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=random, dtype=torch.float64) for _ in range(2))
    y += 1
    plan = torch.from_numpy(ot.emd([], [], ot.dist(x.numpy(), y.numpy()) / 2))
    exact = n * plan @ y - x
    w2_squared = float(exact.square().sum(-1).mean())
    taus = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]
    fields = [kd.SinkhornDrift(tau, tol=1e-8, max_half_steps=100_000)(x, y) for tau in taus]
    errors = [float((v - exact).norm() / exact.norm()) for v in fields]
    energies = [float(v.square().sum(-1).mean()) / w2_squared for v in fields]
    figure = plot_curves(
        {
            "‖V − (y_σ − x)‖/‖y_σ − x‖": (taus, errors),
            "|mean ‖V‖²/W₂² − 1|": (taus, [abs(e - 1) for e in energies]),
        },
        title="Towards exact transport, from right to left",
        xlabel="τ [length²]",
        ylabel="relative error",
    )
    figure.axes[0].set_xscale("log")
    save_figure(figure, Path(folder) / "cold_limit.png")
    rest = kd.SinkhornDrift(taus[-1], tol=1e-8)(y.flip(0), y)
    return {
        "error at τ = 1": errors[0],
        f"error at τ = {taus[-1]:g}": errors[-1],
        f"mean ‖V‖²/W₂² at τ = {taus[-1]:g}": energies[-1],
        "largest ‖V‖ at a permutation of the data": float(rest.norm(dim=-1).max()),
    }


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
