"""Time against the error of the field itself, ours beside its peers, on the same clouds.

    python benchmarks/field_error.py                          # half-trained 8-Gaussians, N = 10 000
    python benchmarks/field_error.py --size 2000 --tau 0.1 0.01 --limit 60

A marginal error flatters: what a training step uses is the drift V. Every cell computes V once, in
a process of its own after a small run that compiles, and is compared with our float64 field at
tol = 1e-7 (relative L2 over all particles). The kernel is exp(−‖x−y‖²/τ). A cell that passes
--limit seconds is stopped and reported as such; a peer that is not installed, as missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, markdown

PROBLEMS = ("half-trained", "blob", "checkerboard", "mixture")


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


def settings(peers: list[str]) -> list[tuple[str, float]]:
    ladder = {
        "keodrift, tol": (1e-2, 1e-3, 1e-4),
        "keodrift one-sided": (0,),
        "keodrift, sweeps": (20, 100),
        "GeomLoss multiscale, scaling": (0.5, 0.9, 0.99, 0.999),
        "GeomLoss online, scaling": (0.5, 0.9, 0.99),
        "GeomLoss tensorized, scaling": (0.5, 0.9, 0.99),
        "dense torch, sweeps": (20, 100, 1000),
        "POT log, iterations": (20, 100, 1000),
        "OTT-JAX, iterations": (20, 100, 1000),
    }
    chosen = [p for p in ladder if not peers or any(word in p for word in peers)]
    return [(peer, value) for peer in chosen for value in ladder[peer]]


def drift(peer: str, value: float, x, y, tau: float):
    """V by one peer at one setting."""
    import torch

    import keodrift as kd

    n = len(x)
    if peer == "reference":
        return kd.SinkhornDrift(tau, cost="squared", tol=1e-7, max_iterations=20_000)(
            x.double(), y.double()
        )
    if peer == "keodrift, tol":
        return kd.SinkhornDrift(tau, cost="squared", tol=value)(x, y)
    if peer == "keodrift one-sided":
        return kd.OneSidedDrift(tau, cost="squared", mask_self=False)(x, y)
    if peer == "keodrift, sweeps":
        return kd.SinkhornDrift(tau, cost="squared", iterations=2 * int(value) + 1)(x, y)
    if peer.startswith("GeomLoss"):
        from geomloss import SamplesLoss

        backend = peer.split()[1].rstrip(",")
        loss = SamplesLoss("sinkhorn", p=2, blur=(tau / 2) ** 0.5, scaling=value, backend=backend)
        z = x.clone().requires_grad_()
        return -n * torch.autograd.grad(loss(z, y), z)[0]
    if peer == "dense torch, sweeps":
        return barycentre(x, y, tau, int(value)) - barycentre(x, x, tau, int(value))
    if peer == "POT log, iterations":
        import ot

        def plan(z):
            weights = torch.full((n,), 1 / n, dtype=x.dtype)
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
        import jax.numpy as jnp
        from ott.geometry import pointcloud
        from ott.solvers import linear

        def mean(z):
            cloud = pointcloud.PointCloud(
                jnp.asarray(x), jnp.asarray(z), epsilon=tau, batch_size=1024
            )
            out = linear.solve(cloud, max_iterations=int(value), threshold=0.0)
            return out.apply(jnp.asarray(z).T, axis=1).T * n

        return torch.tensor(jnp.asarray(mean(y) - mean(x)).tolist())
    raise ValueError(peer)


def barycentre(x, y, tau: float, sweeps: int):
    """Log-domain Sinkhorn on a stored matrix, as one writes it."""
    import torch

    logits = -(torch.cdist(x, y) ** 2) / tau
    f, g = torch.zeros(len(x), 1), torch.zeros(1, len(y))
    for _ in range(sweeps):
        f = -torch.logsumexp(logits + g, 1, keepdim=True)
        g = -torch.logsumexp(logits + f, 0, keepdim=True)
    return torch.softmax(logits + g, 1) @ y


def cell(spec: dict) -> None:
    """Computes one drift, prints its time and stores it."""
    import numpy as np

    x, y = clouds(spec["problem"], spec["size"], spec["d"])
    peer, value, tau = spec["peer"], spec["value"], spec["tau"]
    if "keodrift" in peer:  # large enough to compile what the real size runs
        few = clouds(spec["problem"], 3000, spec["d"])
        drift(peer, 1e-2 if "tol" in peer else min(value, 2), *few, tau)
    elif peer != "reference":
        few = clouds(spec["problem"], 200, spec["d"])
        drift(peer, 0.5 if "scaling" in peer else 2, *few, tau)
    begun = time.perf_counter()
    v = drift(peer, value, x, y, tau)
    print(json.dumps({"seconds": time.perf_counter() - begun}))
    np.save(spec["path"], v.detach().double().numpy())


def run(spec: dict, limit: float) -> dict:
    import numpy as np

    missing = {"POT": "ot", "OTT": "ott"}.get(spec["peer"][:3])
    if missing and importlib.util.find_spec(missing) is None:
        return spec | {"error": "missing"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.npy"
        command = [sys.executable, str(Path(__file__).resolve()), "--cell"]
        try:
            done = subprocess.run(
                [*command, json.dumps(spec | {"path": str(path)})],
                capture_output=True,
                text=True,
                check=False,
                timeout=limit + 60,
            )
        except subprocess.TimeoutExpired:
            return spec | {"error": f"over {limit:.0f} s"}
        if done.returncode != 0:
            return spec | {"error": done.stderr.strip().splitlines()[-1][:80]}
        return spec | json.loads(done.stdout.splitlines()[-1]) | {"v": np.load(path)}


def main() -> None:
    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=["half-trained"], choices=PROBLEMS)
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--d", type=int, default=2, help="dimension (mixture only)")
    parser.add_argument("--tau", type=float, nargs="+", default=[0.1])
    parser.add_argument("--peers", nargs="+", default=[], help="words in the names of peers")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds a cell may take")
    parser.add_argument("--output", type=Path, default=Path("outputs/field_error"))
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        return cell(json.loads(options.cell))

    from keodrift.files import write_json

    rows, results = [], []
    for problem in options.problems:
        for tau in options.tau:
            base = {"problem": problem, "size": options.size, "d": options.d, "tau": tau}
            truth = run(base | {"peer": "reference", "value": 0}, 10 * options.limit)
            if "error" in truth:
                sys.exit(f"the reference failed: {truth['error']}")
            for peer, value in settings(options.peers):
                out = run(base | {"peer": peer, "value": value}, options.limit)
                v = out.pop("v", None)
                if v is not None:
                    out["field_error"] = float(
                        np.linalg.norm(v - truth["v"]) / np.linalg.norm(truth["v"])
                    )
                results.append(out)
                shown = (
                    [out["error"], ""]
                    if v is None
                    else [f"{out['field_error']:.2%}", f"{out['seconds']:.2f}"]
                )
                rows.append([f"{problem}, τ = {tau:g}, {peer} {value:g}", *shown])
                print(" | ".join(rows[-1]), flush=True)
    name = f"{'-'.join(options.problems)}-n{options.size}-d{options.d}"
    write_json(options.output / f"{name}.json", {"machine": machine(), "rows": results})
    print("\n" + markdown(["problem, peer", "field error", "seconds"], rows))
    print(f"\nN = M = {options.size}, d = {options.d}. Measured on {machine()}.")
    plot(results, options.output / f"{name}.png")


def plot(results: list[dict], path: Path) -> None:
    from keodrift.plots import new_figure, save_figure

    keys = list(dict.fromkeys((r["problem"], r["tau"]) for r in results))
    figure, axes = new_figure(5 * len(keys), 4, columns=len(keys))
    for panel, key in zip(axes[0], keys, strict=True):
        mine = [r for r in results if (r["problem"], r["tau"]) == key and "field_error" in r]
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
        panel.set_title(f"{key[0]}, τ = {key[1]:g}: lower left is better", fontsize="medium")
        panel.legend(fontsize="x-small")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
