"""Speed of one pass: pairs per second of the two verbs, beside stock KeOps and the machine itself.

    python benchmarks/passes.py
    python benchmarks/passes.py dimensions=[2,6] device=cuda

For every dimension one run measures, on the same clouds in float32 under exp(−‖x−y‖²/τ):
KeOps' own logsumexp and sumsoftmaxweight, each engine's log-mass and barycentre (without a guess
of the result, and about one, which is what a solver does after its first pass), and the roofline
of the tiled engine: the same blocks' matrix products and exponentials with nothing around them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import begin, machine, markdown, seconds

from keodrift.files import write_json
from keodrift.plots import new_figure, save_figure
from keodrift.reductions import gibbs_kernel
from keodrift.reductions.sizes import sizes

SETTINGS = {
    "dimensions": [2, 3, 6, 16, 64],
    "size": 20_000,  # N = M; halved above d = 6
    "engines": ["tiled", "keops"],
    "device": "cpu",
    "repeats": 3,
    "name": "passes",  # of the files written
    "output": "outputs/passes",
}
VERBS = ("log-mass", "log-mass, guess", "barycentre", "barycentre, guess")


def stock(x: torch.Tensor, y: torch.Tensor, tau: float) -> dict:
    """KeOps as its documentation writes these reductions."""
    from pykeops.torch import LazyTensor

    backend = "GPU" if x.is_cuda else "CPU"

    def logits() -> LazyTensor:
        x_i, y_j = LazyTensor(x[:, None] / tau**0.5), LazyTensor(y[None] / tau**0.5)
        return -((x_i - y_j) ** 2).sum(-1)

    return {
        "log-mass": lambda: logits().logsumexp(1, backend=backend),
        "barycentre": lambda: logits().sumsoftmaxweight(LazyTensor(y[None]), 1, backend=backend),
    }


def ours(x: torch.Tensor, y: torch.Tensor, tau: float, engine: str) -> dict:
    kernel = gibbs_kernel(x, y, "squared", tau, backend=engine)
    bias = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    guess = kernel.log_mass(bias)
    return {
        "log-mass": lambda: kernel.log_mass(bias),
        "log-mass, guess": lambda: kernel.log_mass(bias, guess),
        "barycentre": lambda: kernel.barycentre(bias),
        "barycentre, guess": lambda: kernel.barycentre(bias, guess=guess),
    }


def roofline(x: torch.Tensor, y: torch.Tensor) -> dict:
    """The tiled engine's products and exponentials alone, on its own block size."""
    n, _d = x.shape
    cols = min(len(y), 2048)
    rows = min(n, sizes(x.device.type).tile // cols)
    values = torch.cat([torch.ones_like(y[:, :1]), y], 1)

    def blocks(average: bool) -> None:
        for i in range(0, n, rows):
            for j in range(0, len(y), cols):
                tile = torch.mm(x[i : i + rows], y[j : j + cols].T).mul_(0.01).exp_()
                _ = tile @ values[j : j + cols] if average else tile.sum(1)

    return {"log-mass": lambda: blocks(False), "barycentre": lambda: blocks(True)}


def rate_of(results: list[dict], d: int, peer: str, verb: str) -> float:
    found = (r for r in results if (r["d"], r["peer"], r["verb"]) == (d, peer, verb))
    return next(found, {"rate": float("nan")})["rate"]


def table(report: dict) -> str:
    """Rates of every peer and verb, with their ratio to stock KeOps."""
    rows = []
    for d, peer in dict.fromkeys((r["d"], r["peer"]) for r in report["rows"]):
        cells = []
        for verb in VERBS:
            value = rate_of(report["rows"], d, peer, verb)
            base = rate_of(report["rows"], d, "stock KeOps", verb.split(",")[0])
            ratio = "" if peer == "stock KeOps" else f" ({value / base:.1f}×)"
            cells.append("" if value != value else f"{value:.0f}{ratio}")
        rows.append([f"{d}, {peer}", *cells])
    note = f"Million pairs a second (ratio to stock KeOps). Measured on {report['machine']}."
    return markdown(["d, engine", *VERBS], rows) + "\n\n" + note


def main(options) -> None:
    results = []
    for d in options.dimensions:
        size = options.size if d <= 6 else options.size // 2
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(size, d, generator=generator).to(options.device) for _ in range(2))
        tau = 0.1 * d
        peers = {"stock KeOps": stock(x, y, tau), "roofline": roofline(x, y)}
        peers |= {engine: ours(x, y, tau, engine) for engine in options.engines}
        for peer, calls in peers.items():
            for verb, call in calls.items():
                time = seconds(call, options.device, options.repeats)
                rate = size**2 / time / 1e6
                results.append({"d": d, "size": size, "peer": peer, "verb": verb, "rate": rate})
                print(f"d = {d:3d}  {peer:12s} {verb:18s} {rate:8.0f} million pairs/s", flush=True)

    report = {"machine": machine(options.device), "rows": results}
    write_json(Path(options.output) / f"{options.name}.json", report)
    print("\n" + table(report))

    def rate(d: int, peer: str, verb: str) -> float:
        return rate_of(results, d, peer, verb)

    figure, axes = new_figure(9, 4, columns=2)
    for panel, verb in zip(axes[0], ("log-mass", "barycentre"), strict=True):
        for peer in ("stock KeOps", "roofline", *options.engines):
            best = verb if peer in ("stock KeOps", "roofline") else f"{verb}, guess"
            values = [rate(d, peer, best) for d in options.dimensions]
            panel.plot(options.dimensions, values, marker="o", label=peer)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("dimension d")
        panel.set_ylabel("million pairs per second")
        panel.set_title(f"{verb}, one pass in float32", fontsize="medium")
        panel.legend(fontsize="small")
    save_figure(figure, Path(options.output) / f"{options.name}.png")


if __name__ == "__main__":
    begin(main, SETTINGS)
