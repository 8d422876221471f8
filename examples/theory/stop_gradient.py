"""Regression on a moved, frozen copy is an Euler step. python …/stop_gradient.py

The loss ½E‖x − sg(x + V)‖² has the gradient −V/N in every sample, because the copy is a constant.
So gradient descent with rate ηN on free particles is the flow x ← x + ηV, step by step; and a
network x = Wz receives −(1/N) Σ Vᵢzᵢᵀ, the same step as far as its parameters can follow.
"""

from __future__ import annotations

from pathlib import Path

import torch

import keodrift as kd
from keodrift.plots import plot_flows, save_figure


def main(folder: str | Path = "outputs/theory", steps: int = 40) -> dict[str, float]:
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=random, dtype=torch.float64) for n in (50, 80))
    y = 0.4 * y + 1.5
    drift, eta = kd.SinkhornDrift(0.3, tol=1e-8), 0.1

    free = x.clone().requires_grad_()
    descent = torch.optim.SGD([free], lr=eta * len(x))
    path = [x]
    for _ in range(steps):
        descent.zero_grad()
        kd.drift_loss(free, y, drift).backward()
        descent.step()
        path.append(free.detach().clone())
    flow = kd.simulate(drift, x, y, eta, steps, warm_start=False).trajectory

    weight = torch.eye(2, dtype=torch.float64, requires_grad=True)
    kd.drift_loss(x @ weight.T, y, drift).backward()
    expected = -drift(x, y).T @ x / len(x)

    paths = {"gradient descent on the loss": torch.stack(path), "Euler steps of the flow": flow}
    figure = plot_flows(paths, y, title="Two names for one path", size=3.6)
    save_figure(figure, Path(folder) / "stop_gradient.png")
    return {
        "largest distance between the paths": float((paths["gradient descent on the loss"] - flow)
                                                    .norm(dim=-1).max()),
        "way a particle goes, at most": float((flow[-1] - flow[0]).norm(dim=-1).max()),
        "error of the network's gradient": float((weight.grad - expected).norm()),
    }  # fmt: skip


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
