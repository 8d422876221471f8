"""What one converged field takes under each ground cost, beside the squared one.

    python benchmarks/costs.py
    python benchmarks/costs.py size=1000 costs=[squared,l1]

Six principal components of scikit-learn's handwritten digits, drawn with a little noise as data and
with more of it as a model that is half trained; τ is a share of the mean cost. Each cell solves
both couplings to ``tol`` in float32, in a process of its own after a small run that compiles, and
evaluates V at all particles. Results are written after every cell.
"""

from __future__ import annotations

import time
from pathlib import Path

from common import begin, in_own_process, machine, markdown, peak_mb, synchronise

COSTS = ("squared", "euclidean", "pseudo_huber", "cosine", "l1", "mahalanobis")
SETTINGS = {
    "costs": list(COSTS),
    "size": 20_000,  # N = M
    "d": 6,
    "tau": 0.05,  # in mean costs
    "tol": 1e-3,
    "limit": 900.0,  # seconds a cell may take
    "device": "cpu",
    "name": "costs",
    "output": "outputs/costs",
}


def cell(spec: dict) -> dict:
    """Solves one field in this process and says what it took."""
    import torch
    from passes import expressions

    import keodrift as kd
    from keodrift.costs import COSTS as NAMED
    from keodrift.data import load_digits_latents

    device, name = spec["device"], spec["cost"]
    latents = load_digits_latents(spec["d"]).train

    def sample(size: int) -> list[torch.Tensor]:
        random = torch.Generator().manual_seed(0)
        picks = torch.randint(len(latents), (2, size), generator=random)
        noise = torch.randn(2, size, spec["d"], generator=random)
        both = zip(picks, noise, (0.5, 0.1), strict=True)
        return [(latents[pick] + std * one).to(device) for pick, one, std in both]

    cost = name if name in NAMED else expressions(spec["d"], device)[name]
    drift = kd.SinkhornDrift(spec["tau"], relative=True, cost=cost, tol=spec["tol"])
    drift(*sample(min(3000, spec["size"])))  # compiles
    x, y = sample(spec["size"])
    begun = time.perf_counter()
    field = drift.fit(x, y)
    field()
    synchronise(device)
    return {
        "seconds": time.perf_counter() - begun,
        "peak_mb": peak_mb(device),
        "half_steps": [c.half_steps for c in field.couplings],
        "marginal_error": float(field.marginal_error),
        "engine": field.couplings[0].problem.kernel.engine.name,
    }


def main(options) -> None:
    from keodrift.files import write_json

    shared = {key: options[key] for key in ("size", "d", "tau", "tol", "device")}
    report = {"machine": machine(options.device), **shared, "rows": []}
    for name in options.costs:
        found = in_own_process(__file__, shared | {"cost": name}, options.limit)
        report["rows"].append({"cost": name} | found)
        print(report["rows"][-1], flush=True)
        write_json(Path(options.output) / f"{options.name}.json", report)
    print("\n" + table(report))


def table(report: dict) -> str:
    """Time beside the squared cost's, half-steps and marginal error, cost by cost."""
    base = next((r for r in report["rows"] if r["cost"] == "squared" and "seconds" in r), None)
    rows = []
    for r in report["rows"]:
        if "error" in r:
            rows.append([r["cost"], r["error"], "", "", "", ""])
            continue
        ratio = "" if base is None else f"{r['seconds'] / base['seconds']:.2f}×"
        steps = " + ".join(map(str, r["half_steps"]))
        end = [f"{r['marginal_error']:.1e}", f"{r['peak_mb']:.0f}"]
        rows.append([f"{r['cost']} ({r['engine']})", f"{r['seconds']:.2f}", ratio, steps, *end])
    header = ["cost", "seconds", "to squared", "half-steps", "marginal error", "peak MB"]
    note = f"N = M = {report['size']:,}, d = {report['d']}, τ = {report['tau']:g} mean costs, "
    return (
        markdown(header, rows)
        + f"\n\n{note}tol {report['tol']:g}. Measured on "
        + (f"{report['machine']}.")
    )


if __name__ == "__main__":
    begin(main, SETTINGS, {"costs": COSTS}, cell)
