"""A model that is not the data, and a field that does not tell. python …/counter_example.py

In one dimension with the kernel exp(−(x−y)²), data ½δ₀ + ½δ₁: there is a model ½δ_a + ½δ_b whose
one-sided field vanishes at both data points. The Sinkhorn field of the same clouds does not: for
two distinct points against two it vanishes where the sets agree and nowhere else (Sinkhorn
drifting, Proposition 3.11 and Appendix A).
"""

from __future__ import annotations

from pathlib import Path

import torch
from scipy.optimize import fsolve

import keodrift as kd
from keodrift.plots import plot_curves, save_figure


def main(folder: str | Path = "outputs/theory") -> dict[str, float]:
    data = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    fields = {
        "one-sided": kd.OneSidedDrift(1.0, cost="squared", mask_self=False),
        "Sinkhorn": kd.SinkhornDrift(1.0, cost="squared", tol=1e-12),
    }

    def at_data(name: str, model: torch.Tensor) -> torch.Tensor:
        return fields[name].fit(model, data)(data)[:, 0]

    def one_sided(atoms):
        return at_data("one-sided", torch.as_tensor(atoms)[:, None]).numpy()

    a, b = fsolve(one_sided, (-1.35, 0.75), xtol=1e-12)
    model = torch.tensor([[a], [b]], dtype=torch.float64)
    line = torch.linspace(-2.5, 2.5, 201, dtype=torch.float64)
    curves = {
        name: (line.tolist(), drift.fit(model, data)(line[:, None])[:, 0].tolist())
        for name, drift in fields.items()
    }
    figure = plot_curves(
        curves,
        title="0 at both data (squares): blind to the model (dots)",
        xlabel="x [length]",
        ylabel="V(x) [length]",
        logy=False,
    )
    axes = figure.axes[0]
    axes.plot(data[:, 0], [0, 0], "ks", [a, b], [0, 0], "ro")
    save_figure(figure, Path(folder) / "counter_example.png")
    return {
        "a": a,
        "b": b,
        "one-sided, largest at the data": float(at_data("one-sided", model).abs().max()),
        "Sinkhorn, largest at the data": float(at_data("Sinkhorn", model).abs().max()),
    }


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
