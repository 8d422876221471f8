"""Speed of one pass: pairs per second of every verb, beside stock KeOps and the machine itself.

    python benchmarks/passes.py
    python benchmarks/passes.py dimensions=[2,6] device=cuda
    python benchmarks/passes.py costs=[all] dimensions=[2,6,16] name=costs

For every dimension and cost one run measures, on the same clouds in float32 under exp(−C/τ), τ a
twentieth of the mean cost: KeOps' own logsumexp (its slope by autograd) and sumsoftmaxweight; each
engine's log-mass, barycentre (without a guess of the result, and about one, which is what a solver
does after its first pass) and mean slope of the cost; and the roofline of the tiled engine under
the squared cost: the same blocks' matrix products and exponentials with nothing around them. The
costs l1 and mahalanobis (weights by coordinate) are given as a user would, as expressions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from common import begin, machine, markdown, seconds

from keodrift.costs import COSTS, as_cost, check_cost
from keodrift.files import write_json
from keodrift.plots import new_figure, save_figure
from keodrift.reductions import gibbs_kernel, mean_cost
from keodrift.reductions.sizes import sizes

NAMES = ("squared", "euclidean", "pseudo_huber", "cosine", "l1", "mahalanobis")
SETTINGS = {
    "dimensions": [2, 3, 6, 16, 64],
    "costs": ["squared"],  # or all
    "size": 20_000,  # N = M; halved above d = 6
    "engines": ["tiled", "keops"],
    "device": "cpu",
    "repeats": 3,
    "name": "passes",  # of the files written
    "output": "outputs/passes",
}
VERBS = ("log-mass", "log-mass, guess", "barycentre", "barycentre, guess", "slope")


def expressions(d: int, device: str) -> dict[str, Callable]:
    """The costs as one writes them; the cosine for points that lie on the sphere."""
    weights = torch.linspace(0.5, 2, d, device=device)
    return {
        "squared": lambda x, y: ((x - y) ** 2).sum(-1),
        "euclidean": lambda x, y: ((x - y) ** 2).sum(-1).sqrt(),
        "pseudo_huber": lambda x, y: (1 + ((x - y) ** 2).sum(-1)).sqrt() - 1,
        "cosine": lambda x, y: 1 - (x * y).sum(-1),
        "l1": lambda x, y: (x - y).abs().sum(-1),
        "mahalanobis": lambda x, y: (((x - y) ** 2) * weights).sum(-1) / 2,
    }


def stock(x: torch.Tensor, y: torch.Tensor, cost: Callable, tau: float) -> dict:
    """KeOps as its documentation writes these reductions."""
    from pykeops.torch import LazyTensor

    backend = "GPU" if x.is_cuda else "CPU"

    def logits(x: torch.Tensor) -> LazyTensor:
        return -cost(LazyTensor(x[:, None]), LazyTensor(y[None])) / tau

    def slope() -> torch.Tensor:
        free = x.clone().requires_grad_()
        mass = logits(free).logsumexp(1, backend=backend)
        return -tau * torch.autograd.grad(mass.sum(), free)[0]

    return {
        "log-mass": lambda: logits(x).logsumexp(1, backend=backend),
        "barycentre": lambda: logits(x).sumsoftmaxweight(LazyTensor(y[None]), 1, backend=backend),
        "slope": slope,
    }


def ours(x: torch.Tensor, y: torch.Tensor, cost, tau: float, engine: str) -> dict:
    kernel = gibbs_kernel(x, y, cost, tau, backend=engine)
    bias = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    guess = kernel.log_mass(bias)
    return {
        "log-mass": lambda: kernel.log_mass(bias),
        "log-mass, guess": lambda: kernel.log_mass(bias, guess),
        "barycentre": lambda: kernel.barycentre(bias),
        "barycentre, guess": lambda: kernel.barycentre(bias, guess=guess),
        "slope": lambda: kernel.mean_cost_gradient(bias, guess),
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
                # Turned, the product with few values is several times faster on a CPU.
                _ = values[j : j + cols].T @ tile.T if average else tile.sum(1)

    return {"log-mass": lambda: blocks(False), "barycentre": lambda: blocks(True)}


def rate_of(results: list[dict], d: int, cost: str, peer: str, verb: str) -> float:
    wanted = (d, cost, peer, verb)
    found = (r for r in results if (r["d"], cost_of(r), r["peer"], r["verb"]) == wanted)
    return next(found, {"rate": float("nan")})["rate"]


def cost_of(row: dict) -> str:
    return row.get("cost", "squared")


def table(report: dict) -> str:
    """Rates of every peer and verb, with their ratio to stock KeOps."""
    rows = []
    for d, cost, peer in dict.fromkeys((r["d"], cost_of(r), r["peer"]) for r in report["rows"]):
        cells = []
        for verb in VERBS:
            value = rate_of(report["rows"], d, cost, peer, verb)
            base = rate_of(report["rows"], d, cost, "stock KeOps", verb.split(",")[0])
            ratio = "" if peer == "stock KeOps" or base != base else f" ({value / base:.1f}×)"
            cells.append("" if value != value else f"{value:.0f}{ratio}")
        rows.append([f"{d}, {cost}, {peer}", *cells])
    note = f"Million pairs a second (ratio to stock KeOps). Measured on {report['machine']}."
    return markdown(["d, cost, engine", *VERBS], rows) + "\n\n" + note


def main(options) -> None:
    results = []
    names = NAMES if "all" in options.costs else options.costs
    for d, name in ((d, name) for d in options.dimensions for name in names):
        size = options.size if d <= 6 else options.size // 2
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(size, d, generator=generator).to(options.device) for _ in range(2))
        if name == "cosine":
            x, y = (z / z.norm(dim=-1, keepdim=True) for z in (x, y))
        written = expressions(d, options.device)[name]
        cost = check_cost(as_cost(name if name in COSTS else written), x, y)
        tau = float(mean_cost(x, y, cost, 1000)) / 20
        peers = {"stock KeOps": stock(x, y, written, tau)}
        if name == "squared":
            peers["roofline"] = roofline(x, y)
        peers |= {engine: ours(x, y, cost, tau, engine) for engine in options.engines}
        for peer, calls in peers.items():
            for verb, call in calls.items():
                time = seconds(call, options.device, options.repeats)
                rate = size**2 / time / 1e6
                row = {"d": d, "cost": name, "size": size, "peer": peer, "verb": verb}
                results.append(row | {"rate": rate})
                words = f"d = {d:3d}  {name:12s} {peer:12s} {verb:18s}"
                print(f"{words} {rate:8.0f} million pairs/s", flush=True)
        # After every cost, since stock formulas compile anew for each.
        report = {"machine": machine(options.device), "rows": results}
        write_json(Path(options.output) / f"{options.name}.json", report)

    print("\n" + table(report))
    figure, axes = new_figure(13, 4, columns=3)
    styles = dict(zip(("stock KeOps", *options.engines), ("x:", "s--", "o-", "^-."), strict=False))
    for panel, verb in zip(axes[0], ("log-mass", "barycentre", "slope"), strict=True):
        for k, name in enumerate(names):
            for peer, style in styles.items():
                best = f"{verb}, guess" if peer != "stock KeOps" and verb != "slope" else verb
                values = [rate_of(results, d, name, peer, best) for d in options.dimensions]
                label = f"{name}, {peer}"
                panel.plot(options.dimensions, values, style, color=f"C{k}", label=label)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("dimension d")
        panel.set_ylabel("million pairs per second")
        panel.set_title(f"{verb}, one pass in float32", fontsize="medium")
    axes[0, 0].legend(fontsize="xx-small")
    save_figure(figure, Path(options.output) / f"{options.name}.png")


if __name__ == "__main__":
    begin(main, SETTINGS, {"costs": ["all", *NAMES]})
