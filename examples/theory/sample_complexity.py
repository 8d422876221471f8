"""How fast a batch's field nears the population's. python …/sample_complexity.py

Between Gaussians the converged Sinkhorn field is affine and known. The mean squared error of the
field of n samples is bounded by a multiple of log(n)·n^−½ (Sinkhorn drifting, Proposition 3.8);
at a fixed temperature it falls faster, about as 1/n, for Sinkhorn as for the one-sided field.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

import keodrift as kd
from keodrift.gaussians import gaussian_one_sided_drift, gaussian_sinkhorn_drift
from keodrift.plots import plot_curves, save_figure

TAU = 0.5


def main(
    folder: str | Path = "outputs/theory", sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
) -> dict[str, float]:
    random = torch.Generator().manual_seed(0)
    batches = 24  # independent, at every size
    roots = torch.tensor([[[1.0, 0.0], [0.3, 0.7]], [[0.6, -0.3], [0.0, 0.9]]]).double()
    means = torch.tensor([[0.3, -0.2], [-0.4, 0.5]]).double()
    q, p = ((mean, root @ root.T) for mean, root in zip(means, roots, strict=True))
    fields = {
        "Sinkhorn": (kd.SinkhornDrift(TAU, tol=1e-4), gaussian_sinkhorn_drift),
        "one-sided": (kd.OneSidedDrift(TAU, mask_self=False), gaussian_one_sided_drift),
    }

    def draw(law: int, *shape: int) -> torch.Tensor:
        normal = torch.randn(*shape, 2, generator=random, dtype=torch.float64)
        return means[law] + normal @ roots[law].T

    z = draw(0, 200)
    errors: dict[str, list[float]] = {name: [] for name in fields}
    for n in sizes:
        x, y = draw(0, batches, n), draw(1, batches, n)
        for name, (drift, truth) in fields.items():
            off = drift.fit(x, y)(z.expand(batches, -1, -1)) - truth(z, q, p, TAU)
            errors[name].append(float(off.square().sum(-1).mean()))
    curves = {name: (sizes, values) for name, values in errors.items()}
    start, n0 = errors["Sinkhorn"][0], sizes[0]
    curves["log(n)·n^−½"] = (
        sizes,
        [start * math.log(n) / math.log(n0) * math.sqrt(n0 / n) for n in sizes],
    )
    figure = plot_curves(
        curves,
        title="The field of a batch against the population's, between Gaussians",
        xlabel="batch n",
        ylabel="mean squared error [length²]",
    )
    figure.axes[0].set_xscale("log")
    save_figure(figure, Path(folder) / "sample_complexity.png")
    return {
        f"{name}, exponent of n": float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
        for name, values in errors.items()
    } | {f"{name}, error at n = {sizes[-1]}": values[-1] for name, values in errors.items()}


if __name__ == "__main__":
    print(*(f"{name}: {number:.4g}" for name, number in main().items()), sep="\n")
