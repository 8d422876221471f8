"""Which fields are gradients? python …/curl_of_fields.py

A gradient flow of anything has a velocity with a symmetric Jacobian. Fitted and then looked at off
the particles, the one-sided Gaussian field, its sharp Laplacian form, the flows of KL, MMD, KALE
and sliced Wasserstein, and converged Sinkhorn have one. The Laplacian barycentre has none, and
neither have fields whose differences of means are multiplied by masses: Algorithm 2 of Deng et al.
and the Sinkhorn proxy (On the Wasserstein gradient flow interpretation of drifting models, section
3.2).
"""

from __future__ import annotations

from pathlib import Path

import torch

import keodrift as kd
from keodrift.plots import new_figure, save_figure


def fields(tau: float) -> dict[str, kd.Drift]:
    far = {"cost": "euclidean", "mask_self": False}
    return {
        "one-sided, Gaussian": kd.OneSidedDrift(tau, mask_self=False),
        "one-sided, Laplacian, sharp": kd.OneSidedDrift(tau, velocity="gradient", **far),
        "KL flow": kd.KLDrift(tau, form="flow"),
        "MMD": kd.MMDDrift(tau**0.5),
        "KALE": kd.KALEDrift(tau, lam=0.1),
        "sliced": kd.SlicedWassersteinDrift(64),
        "Sinkhorn": kd.SinkhornDrift(tau, tol=1e-8),
        "one-sided, Laplacian": kd.OneSidedDrift(tau, **far),
        "Algorithm 2": kd.TwoSidedDrift(tau, form="joint", mask_self=False),
        "proxy": kd.SinkhornProxyDrift(tau, mask_self=False),
    }


def main(folder: str | Path = "outputs/theory", side: int = 24) -> dict[str, float]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=random, dtype=torch.float64)
    y = torch.randn(60, 2, generator=random, dtype=torch.float64) * 0.3
    y += 1.5 * torch.randint(2, (60, 1), generator=random) - 0.75  # two modes on a diagonal
    line = torch.linspace(-2.5, 2.5, side, dtype=torch.float64)
    grid_points = torch.cartesian_prod(line, line)
    curls = {name: kd.curl(drift.fit(x, y), grid_points) for name, drift in fields(tau=0.5).items()}
    columns = -(-len(curls) // 2)
    figure, grid = new_figure(2.6 * columns, 6.2, 2, columns)
    for axes, (name, values) in zip(grid.flat, curls.items(), strict=True):
        logs = values.clamp_min(1e-16).log10().reshape(side, side).T.numpy()
        image = axes.imshow(logs, origin="lower", extent=[-2.5, 2.5] * 2, vmin=-16, vmax=0)
        axes.plot(*y.T.numpy(), "w.", *x.T.numpy(), "r.", ms=2)
        axes.set(title=name, xlabel="$x_1$ [length]", ylabel="$x_2$ [length]")
    figure.colorbar(image, ax=grid[:, -1], label="log₁₀ ‖J − Jᵀ‖/‖J + Jᵀ‖")
    figure.suptitle("Dark: a gradient, to rounding. Bright: no energy has this field")
    save_figure(figure, Path(folder) / "curl_of_fields.png")
    return {name: float(values.median()) for name, values in curls.items()}


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
