"""Time against the error of the field itself, ours beside its peers, on the same clouds.

    python benchmarks/field_error.py                          # half-trained 8-Gaussians, N = 10 000
    python benchmarks/field_error.py sizes=[25000,100000,400000] peers=[tol,multiscale]
    python benchmarks/field_error.py problems=[mixture] d=6 limit=120
    python benchmarks/field_error.py cost=euclidean           # beside GeomLoss alone

A marginal error flatters: what a training step uses is the drift V. Every cell computes V once, in
a process of its own after a small run that compiles, and is compared (relative L2 over all
particles) with our float64 field at tol = 1e-6, which is itself compared with the dense engine's at
tol = 1e-8 on a smaller problem. The kernel is exp(−‖x−y‖²/τ), or exp(−‖x−y‖/τ) where V is
the gradient of the divergence, as GeomLoss' is. A cell that passes ``limit`` seconds
is stopped and reported as such, as are those that would take longer still; a peer that is not
installed is reported as missing. Results are written after every cell.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
import tempfile
import time
from pathlib import Path

from common import (
    begin,
    in_own_process,
    machine,
    markdown,
    normal_log_sum,
    peak_mb,
    synchronise,
)

PROBLEMS = ("half-trained", "blob", "checkerboard", "mixture")
SETTINGS = {
    "problems": ["half-trained"],
    "sizes": [10_000],
    "d": 2,  # dimension (mixture only)
    "taus": [0.1],
    "cost": "squared",  # or euclidean
    "peers": [],  # words in the names of peers; all if there are none
    "limit": 600.0,  # seconds a cell may take
    "device": "cpu",
    "name": None,  # of the result; by default problem, size, d and τ
    "output": "outputs/field_error",
}


def clouds(problem: str, size: int, d: int, seed: int = 0):
    """Model and data samples, float32."""
    import torch

    from keodrift.data import sample_target

    generator = torch.Generator().manual_seed(seed)

    def noise(std: float) -> torch.Tensor:
        return std * torch.randn(size, d, generator=generator)

    if problem == "mixture":  # eight separated Gaussians, modes drawn independently in x and y
        modes = 2 * torch.randn(8, d, generator=generator) * (2 / d) ** 0.5
        pick = torch.randint(8, (2, size), generator=generator)
        return modes[pick[0]] + noise(0.3), modes[pick[1]] + noise(0.2)
    target = "checkerboard" if problem == "checkerboard" else "eight_gaussians"
    y = sample_target(target, size, generator)
    if problem == "blob":
        return noise(0.3), y
    return sample_target(target, size, generator) + noise(0.2), y


LADDER: dict[str, tuple[float, ...]] = {
    "keodrift, tol": (1e-2, 1e-3, 3e-4, 1e-4),
    "keodrift, drift_tol": (0.1, 0.03, 0.01),
    "keodrift one-sided": (0,),
    "keodrift, sweeps": (20, 100),
    "GeomLoss multiscale, scaling": (0.5, 0.9, 0.99, 0.999, 0.9999),
    "GeomLoss online, scaling": (0.5, 0.9, 0.99),
    "GeomLoss tensorized, scaling": (0.5, 0.9, 0.99),
    "dense torch, sweeps": (20, 100, 1000),
    "stock KeOps, sweeps": (20, 100, 1000),
    "POT log, iterations": (20, 100, 1000),
    "POT lazy, iterations": (20, 100, 1000),
    "OTT-JAX, iterations": (20, 100, 1000),
    "flash-sinkhorn, scaling": (0.5, 0.9, 0.99, 0.999),
    "flash-sinkhorn, iterations": (20, 100, 1000),
}
STORED = ("GeomLoss tensorized", "dense torch", "POT log")  # hold N×M matrices


def ladders(
    peers: list[str], size: int, d: int, cost: str, device: str
) -> dict[str, tuple[float, ...]]:
    def able(peer: str) -> bool:
        if cost != "squared" and not peer.startswith(("keodrift, ", "GeomLoss")):
            return False
        if size > 10_000 and peer.startswith(STORED):
            return False
        if peer.startswith("flash") and not device.startswith("cuda"):
            return False  # has kernels for GPUs alone
        return d <= 3 or "multiscale" not in peer

    chosen = (p for p in LADDER if not peers or any(word in p for word in peers))
    return {p: LADDER[p] for p in chosen if able(p)}


def effort(peer: str, value: float) -> float:
    """What a peer's time is proportional to, over its settings."""
    return 1 / -math.log(value) if "scaling" in peer else max(value, 1.0)


def ours(tau: float, cost: str, **options):
    """Our drift: the barycentric one is the divergence's gradient for squared costs alone."""
    import keodrift as kd

    velocity = "barycentric" if cost == "squared" else "gradient"
    return kd.SinkhornDrift(tau, cost=cost, velocity=velocity, **options)


def power_and_temperature(tau: float, cost: str) -> tuple[int, float]:
    """GeomLoss' p and blur^p: for p = 2 of ½‖x−y‖², whose temperature is half as large."""
    return (2, tau / 2) if cost == "squared" else (1, tau)


def geomloss(peer: str, value: float, tau: float, cost: str, **options):
    from geomloss import SamplesLoss

    p, temperature = power_and_temperature(tau, cost)
    how = {"p": p, "blur": temperature ** (1 / p), "backend": peer.split()[1].rstrip(",")}
    return SamplesLoss("sinkhorn", scaling=value, **how, **options)


def drift(peer: str, value: float, x, y, tau: float, cost: str = "squared"):
    """V by one peer at one setting."""
    import torch

    import keodrift as kd

    n = len(x)
    if peer == "reference":
        backend = "cells" if cost == "squared" and x.shape[1] <= 3 and n >= 10_000 else "auto"
        exact = {"tol": value or 1e-6, "max_half_steps": 20_000, "backend": backend}
        return ours(tau, cost, **exact)(x.double(), y.double())
    if peer == "dense reference":
        exact = {"tol": 1e-8, "max_half_steps": 20_000, "backend": "dense"}
        return ours(tau, cost, **exact)(x.double(), y.double())
    if peer == "keodrift, tol":
        return ours(tau, cost, tol=value)(x, y)
    if peer == "keodrift, drift_tol":
        return ours(tau, cost, drift_tol=value)(x, y)
    if peer == "keodrift one-sided":
        return kd.OneSidedDrift(tau, cost="squared", mask_self=False)(x, y)
    if peer == "keodrift, sweeps":
        return ours(tau, cost, half_steps=2 * int(value) + 1)(x, y)
    if peer.startswith("GeomLoss"):
        loss = geomloss(peer, value, tau, cost)
        z = x.clone().requires_grad_()
        return -n * torch.autograd.grad(loss(z, y), z)[0]
    if peer.startswith("flash-sinkhorn"):
        from flash_sinkhorn import SamplesLoss

        annealed = {"blur": (tau / 2) ** 0.5, "scaling": value}
        fixed = {"use_epsilon_scaling": False, "eps": tau / 2, "n_iters": int(value)}
        how = annealed if "scaling" in peer else fixed
        # As exact as float32, of which the others compute.
        loss = SamplesLoss("sinkhorn", debias=True, half_cost=True, allow_tf32=False, **how)
        z = x.clone().requires_grad_()
        return -n * torch.autograd.grad(loss(z, y), z)[0]
    if peer == "dense torch, sweeps":
        return barycentre(x, y, tau, int(value)) - barycentre(x, x, tau, int(value))
    if peer == "stock KeOps, sweeps":
        return keops_barycentre(x, y, tau, int(value)) - keops_barycentre(x, x, tau, int(value))
    if peer == "POT lazy, iterations":
        import ot

        def lazy_mean(z):
            plan = ot.solve_sample(
                x, z, reg=tau, method="sinkhorn", lazy=True, max_iter=int(value), tol=0
            ).lazy_plan
            rows = torch.empty_like(x)
            for i in range(0, n, 1000):
                part = plan[i : i + 1000]
                rows[i : i + 1000] = (part / part.sum(1, keepdim=True)) @ z
            return rows

        return lazy_mean(y) - lazy_mean(x)
    if peer == "POT log, iterations":
        import ot

        def plan(z):
            weights = torch.full((n,), 1 / n, dtype=x.dtype, device=x.device)
            cost = torch.cdist(x, z) ** 2
            return ot.sinkhorn(
                weights,
                weights,
                cost,
                tau,
                method="sinkhorn_log",
                numItermax=int(value),
                stopThr=0,
                warn=False,
            )

        return sum(
            s * (p / p.sum(1, keepdim=True)) @ z for s, p, z in ((1, plan(y), y), (-1, plan(x), x))
        )
    if peer == "OTT-JAX, iterations":
        import numpy as np

        mean, p, q = ott_mean(tau, int(value)), x.cpu().numpy(), y.cpu().numpy()
        return torch.tensor(np.asarray(mean(p, q) - mean(p, p)), device=x.device)
    raise ValueError(peer)


@functools.cache
def ott_mean(tau: float, iterations: int):
    """OTT-JAX's barycentres as one compiled function of two clouds."""
    import jax
    from ott.geometry import pointcloud
    from ott.solvers import linear

    def mean(x, z):
        cloud = pointcloud.PointCloud(x, z, epsilon=tau, batch_size=1024)
        out = linear.solve(cloud, max_iterations=iterations, threshold=0.0)
        return out.apply(z.T, axis=1).T * len(x)

    return jax.jit(mean)


def barycentre(x, y, tau: float, sweeps: int):
    """Log-domain Sinkhorn on a stored matrix, its exponentials kept above slow denormals."""
    import torch

    logits = -(torch.cdist(x, y) ** 2) / tau
    f, g = x.new_zeros(len(x), 1), x.new_zeros(1, len(y))
    for _ in range(sweeps):
        f = -normal_log_sum(logits + g, 1, keepdim=True)
        g = -normal_log_sum(logits + f, 0, keepdim=True)
    logits += g + f
    logits -= normal_log_sum(logits, 1, keepdim=True)
    return logits.clamp_(min=-80).exp_() @ y


def keops_barycentre(x, y, tau: float, sweeps: int):
    """The same without storing it, as KeOps' documentation writes reductions."""
    import torch
    from pykeops.torch import LazyTensor

    backend = "GPU" if x.is_cuda else "CPU"
    x_i, y_j = LazyTensor(x[:, None] / tau**0.5), LazyTensor(y[None] / tau**0.5)
    logits = -((x_i - y_j) ** 2).sum(-1)
    f, g = torch.zeros_like(x[:, None, :1]), torch.zeros_like(y[None, :, :1])
    for _ in range(sweeps):
        f = -(logits + LazyTensor(g)).logsumexp(1, backend=backend).reshape(f.shape)
        g = -(logits + LazyTensor(f)).logsumexp(0, backend=backend).reshape(g.shape)
    return (logits + LazyTensor(g)).sumsoftmaxweight(LazyTensor(y[None]), 1, backend=backend)


def cell(spec: dict) -> dict:
    """Computes one drift, stores it and says what it took."""
    import numpy as np

    device, peer, value = (spec[key] for key in ("device", "peer", "value"))
    how = (spec["tau"], spec["cost"])

    def sample(size: int):
        return (z.to(device) for z in clouds(spec["problem"], size, spec["d"]))

    if "keodrift" in peer:  # large enough to compile what the real size runs
        drift(peer, 1e-2 if "tol" in peer else min(value, 2), *sample(3000), *how)
    elif "JAX" in peer:  # compiles for the size and the count
        drift(peer, value, *sample(spec["size"]), *how)
    elif "reference" not in peer:
        drift(peer, 0.5 if "scaling" in peer else 2, *sample(200), *how)
    x, y = sample(spec["size"])
    synchronise(device)
    begun = time.perf_counter()
    v = drift(peer, value, x, y, *how)
    synchronise(device)
    taken = time.perf_counter() - begun
    np.save(spec["path"], v.detach().double().cpu().numpy())
    return {"seconds": taken, "peak_mb": peak_mb(device), **marginals(spec, x, y, taken)}


def marginals(spec: dict, x, y, seconds: float) -> dict:
    """Column error of the row-normalised data coupling, where the peer gives its potentials.

    That takes a second solve, which slow settings are spared.
    """
    import torch

    peer, value, tau, cost = (spec[key] for key in ("peer", "value", "tau", "cost"))
    option = {"keodrift, tol": "tol", "keodrift, drift_tol": "drift_tol"}.get(peer)
    if option or peer == "keodrift, sweeps":
        extra = {option: value} if option else {"half_steps": 2 * int(value) + 1}
        field = ours(tau, cost, **extra).fit(x, y)
        return {"marginal_error": float(field.couplings[0].marginal_error)}
    if not peer.startswith("GeomLoss") or seconds > 20:
        return {}
    from keodrift.costs import as_cost
    from keodrift.transport import EntropicProblem

    _, g = geomloss(peer, value, tau, cost, potentials=True, debias=False)(x, y)
    g = g.double().reshape(-1) / power_and_temperature(tau, cost)[1]
    a, b = (z.new_full((len(z),), 1 / len(z), dtype=torch.float64) for z in (x, y))
    problem = EntropicProblem(x, y, a, b, as_cost(cost), tau)
    image = problem.column_step(problem.row_step(g))
    return {"marginal_error": float(problem.marginal_error(g, image))}


def run(spec: dict, limit: float) -> dict:
    import numpy as np

    missing = {"POT": "ot", "OTT": "ott", "fla": "flash_sinkhorn"}.get(spec["peer"][:3])
    if missing and importlib.util.find_spec(missing) is None:
        return spec | {"error": "missing"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.npy"
        # The drift, its marginals, and the start.
        found = in_own_process(__file__, spec | {"path": str(path)}, 2 * limit + 60)
        return spec | found | ({} if "error" in found else {"v": np.load(path)})


def reference(spec: dict, limit: float, kept: Path) -> dict:
    """The converged float64 field, from disk where an earlier run left it."""
    import numpy as np

    known = ("problem", "size", "d", "tau", "cost")
    path = kept / ("-".join(str(spec[key]) for key in known) + ".npy")
    if path.exists():
        return {"v": np.load(path)}
    out = run(spec | {"peer": "reference", "value": 0}, limit)
    if "v" in out:
        kept.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, out["v"])
        part.replace(path)
    return out


def distance(v, truth) -> float:
    import numpy as np

    return float(np.linalg.norm(v - truth) / np.linalg.norm(truth))


def main(options) -> None:
    from keodrift.files import write_json

    results: list[dict] = []
    output = Path(options.output)
    label = "-".join([*options.problems, *(f"n{n}" for n in options.sizes), f"d{options.d}"])
    label += "" if options.cost == "squared" else f"-{options.cost}"
    label = options.name or label + "".join(f"-tau{tau:g}" for tau in options.taus)

    def keep(out: dict) -> None:
        results.append(out)
        write_json(output / f"{label}.json", {"machine": machine(options.device), "rows": results})
        print(" | ".join(shown(out)), flush=True)

    for problem in options.problems:
        for tau in options.taus:
            base = {"problem": problem, "d": options.d, "tau": tau, "cost": options.cost}
            base["device"] = options.device
            small = base | {"size": 1000, "value": 0}
            pair = [
                run(small | {"peer": p}, options.limit) for p in ("reference", "dense reference")
            ]
            if not any("error" in one for one in pair):
                keep(pair[0] | {"v": None, "field_error": distance(pair[0]["v"], pair[1]["v"])})
            for size in options.sizes:
                base["size"] = size
                truth = reference(base, 10 * options.limit, output / "references")
                if "error" in truth:
                    sys.exit(f"the reference failed: {truth['error']}")
                able = ladders(options.peers, size, options.d, options.cost, options.device)
                for peer, values in able.items():
                    pace = 0.0  # seconds a unit of effort, of the last setting
                    for value in values:
                        spec = base | {"peer": peer, "value": value}
                        if pace * effort(peer, value) > options.limit:
                            guess = pace * effort(peer, value)
                            keep(spec | {"error": f"about {guess:.0f} s, not run"})
                            continue
                        out = run(spec, options.limit)
                        v = out.pop("v", None)
                        if v is not None:
                            out["field_error"] = distance(v, truth["v"])
                            pace = out["seconds"] / effort(peer, value) if value else 0.0
                        elif out["error"].startswith("over"):
                            pace = math.inf
                        keep(out)
    print("\n" + table({"machine": machine(options.device), "rows": results}))
    plot(results, output / f"{label}.png")


def table(report: dict) -> str:
    """Error, time, marginal error and memory of every cell."""
    header = ["problem, peer", "field error", "seconds", "marginal error", "peak MB"]
    rows = [shown(r) for r in report["rows"]]
    return markdown(header, rows) + f"\n\nMeasured on {report['machine']}."


def shown(out: dict) -> list[str]:
    name = f"{out['problem']}, d = {out['d']}, N = {out['size']}, τ = {out['tau']:g}"
    check = out["peer"] == "reference"
    row = [f"{name}, {'reference beside dense' if check else peer_name(out)}"]
    if "error" in out:
        return [*row, out["error"], "", "", ""]
    marginal = f"{out['marginal_error']:.1e}" if "marginal_error" in out else ""
    error = (
        f"{out['field_error']:.2%}" if out["field_error"] > 1e-4 else f"{out['field_error']:.0e}"
    )
    return [*row, error, f"{out['seconds']:.2f}", marginal, f"{out['peak_mb']:.0f}"]


def peer_name(out: dict) -> str:
    return out["peer"] if "one-sided" in out["peer"] else f"{out['peer']} {out['value']:g}"


def plot(results: list[dict], path: Path) -> None:
    from keodrift.plots import new_figure, save_figure

    results = [r for r in results if r["peer"] != "reference"]
    keys = list(dict.fromkeys((r["problem"], r["tau"], r["size"]) for r in results))
    figure, axes = new_figure(5 * len(keys), 4, columns=len(keys))
    for panel, key in zip(axes[0], keys, strict=True):
        mine = [
            r for r in results if (r["problem"], r["tau"], r["size"]) == key and "field_error" in r
        ]
        for peer in dict.fromkeys(r["peer"] for r in mine):
            line = [r for r in mine if r["peer"] == peer]
            panel.plot(
                [r["seconds"] for r in line], [r["field_error"] for r in line], "o-", label=peer
            )
        panel.axhline(0.02, color="0.6", linewidth=1)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("time of one field [s]")
        panel.set_ylabel("relative L2 error of the field")
        panel.set_title(
            f"{key[0]}, τ = {key[1]:g}, N = {key[2]}: lower left is better", fontsize="medium"
        )
        panel.legend(fontsize="x-small")
    save_figure(figure, path)


if __name__ == "__main__":
    begin(main, SETTINGS, {"problems": PROBLEMS, "cost": ("squared", "euclidean")}, cell)
