"""Two points against two: the Sinkhorn field is a hyperbolic tangent. python …/two_points.py

Particles ∓r·â and data ∓s·b̂ about one centre, cost ½‖x−y‖². Converged,

    V(x₁) = −tanh(rs â·b̂/τ)·s b̂ + tanh(r²/τ)·r â,

which is 0 only where the sets agree: r = s, and b̂ = ±â (Sinkhorn drifting, Proposition 3.11).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

import keodrift as kd
from keodrift.plots import plot_curves, save_figure


def closed_form(r: float, s: float, angle: float, tau: float) -> torch.Tensor:
    a, b = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    towards = -math.tanh(r * s * float(a @ b) / tau) * s * b
    return towards + math.tanh(r**2 / tau) * r * a


def solved(r: float, s: float, angle: float, tau: float) -> torch.Tensor:
    a, b = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    x, y = torch.stack([-r * a, r * a]), torch.stack([-s * b, s * b])
    return kd.SinkhornDrift(tau, tol=1e-13)(x, y)[0]


def main(folder: str | Path = "outputs/theory", count: int = 25) -> dict[str, float]:
    angles = torch.linspace(0, math.pi, count).tolist()
    curves, worst, least = {}, 0.0, math.inf
    for s in (1.0, 1.5):
        for tau in (0.1, 1.0):
            found = [solved(1.0, s, angle, tau) for angle in angles]
            known = [closed_form(1.0, s, angle, tau) for angle in angles]
            worst = max(worst, *(float((f - k).norm()) for f, k in zip(found, known, strict=True)))
            speeds = [float(f.norm()) for f in found]
            least = min(least, *(speeds[1:-1] if s == 1.0 else speeds))
            curves[f"s/r = {s:g}, τ = {tau:g} r²"] = angles, speeds
    figure = plot_curves(
        curves,
        title="‖V‖ is 0 only where both pairs of points agree: s = r at angles 0 and π",
        xlabel="angle between the pairs [rad]",
        ylabel="‖V(x₁)‖ [r]",
        logy=False,
    )
    save_figure(figure, Path(folder) / "two_points.png")
    return {
        "largest error of the closed form": worst,
        "speed where the sets agree": float(solved(1.0, 1.0, 0.0, 0.1).norm()),
        "least speed elsewhere": least,
    }


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
