"""How the time and the memory of one converged field grow with the number of points.

    python benchmarks/scaling.py
    python benchmarks/scaling.py problems=[checkerboard] taus=[0.01] sizes=[25000,100000]
    python benchmarks/scaling.py backends=[auto,keops] sizes=[10000,30000,100000]

Each cell solves one Sinkhorn field (data and model coupling) to ``tol`` in a process of its own and
evaluates it at all particles, under exp(−‖x−y‖²/τ) in float32. GeomLoss' multiscale gradient at
scaling 0.9 stands beside it; what either is worth, `field_error.py` says. Results are written after
every cell.
"""

from __future__ import annotations

import time
from pathlib import Path

from common import begin, in_own_process, machine, markdown, peak_mb, synchronise

GEOMLOSS = "GeomLoss multiscale 0.9"
SETTINGS = {
    "problems": ["half-trained", "checkerboard"],
    "sizes": [25_000, 100_000, 400_000, 1_000_000],
    "taus": [0.1, 0.01],
    "tol": 1e-3,
    "backends": ["auto", GEOMLOSS],
    "limit": 400.0,  # seconds a cell may take
    "device": "cpu",
    "name": "scaling",  # of the result
    "output": "outputs/scaling",
}


def cell(spec: dict) -> dict:
    """Solves one field in this process and says what it took."""
    from field_error import clouds, drift

    import keodrift as kd

    def solve(x, y) -> dict:
        if spec["backend"] == GEOMLOSS:
            drift("GeomLoss multiscale, scaling", 0.9, x, y, spec["tau"])
            return {}
        recipe = kd.SinkhornDrift(
            spec["tau"], cost="squared", tol=spec["tol"], backend=spec["backend"]
        )
        field = recipe.fit(x, y)
        field()
        synchronise(spec["device"])
        engines = {c.problem.kernel.engine.name for c in field.couplings}
        steps = [c.half_steps for c in field.couplings]
        error = float(field.marginal_error)
        return {"engine": "+".join(sorted(engines)), "half_steps": steps, "marginal_error": error}

    solve(*(z.to(spec["device"]) for z in clouds(spec["problem"], 3000, 2)))  # compiles
    x, y = (z.to(spec["device"]) for z in clouds(spec["problem"], spec["size"], 2))
    begun = time.perf_counter()
    out = solve(x, y)
    out["seconds"] = time.perf_counter() - begun
    out["peak_mb"] = peak_mb()
    return out


def main(options) -> None:
    from keodrift.files import write_json
    from keodrift.plots import new_figure, save_figure

    results: list[dict] = []
    shared = {"tol": options.tol, "device": options.device}
    lines = [(p, t, b) for p in options.problems for t in options.taus for b in options.backends]
    report = {"machine": machine(options.device), "tol": options.tol, "rows": results}
    for problem, tau, backend in lines:
        found: dict = {}
        for size in options.sizes:
            spec = {"problem": problem, "tau": tau, "backend": backend, "size": size} | shared
            if found.get("error", "").startswith("over"):
                found = {"error": "over the limit before, not run"}
                results.append(spec | found)
                continue
            found = in_own_process(__file__, spec, options.limit)
            results.append(spec | found)
            print(results[-1], flush=True)
            write_json(Path(options.output) / f"{options.name}.json", report)
    print("\n" + table(report))
    figure, axes = new_figure(6, 4)
    panel = axes[0][0]
    for line in lines:
        mine = [r for r in results if line_of(r) == line and "seconds" in r]
        problem, tau, backend = line
        panel.plot(
            [r["size"] for r in mine],
            [r["seconds"] for r in mine],
            "o--" if backend == GEOMLOSS else "o-",
            label=f"{problem}, τ = {tau:g}, {'keodrift' if backend == 'auto' else backend}",
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("points N = M")
    panel.set_ylabel("time of one converged field [s]")
    panel.legend(fontsize="x-small")
    save_figure(figure, Path(options.output) / f"{options.name}.png")


def line_of(row: dict) -> tuple[str, float, str]:
    return row["problem"], row["tau"], row["backend"]


def table(report: dict) -> str:
    """Time, growth, memory and half-steps, size by size."""
    rows, before = [], {}
    for r in report["rows"]:
        name = r["backend"] if r["backend"] == GEOMLOSS else f"keodrift ({r.get('engine', '')})"
        row = [f"{r['problem']}, τ = {r['tau']:g}, {name}", f"{r['size']:,}"]
        if "error" in r:
            rows.append([*row, r["error"], "", "", "", ""])
            continue
        growth, last = "", before.get(line_of(r))
        if last is not None:
            ratios = r["seconds"] / last["seconds"], r["size"] / last["size"]
            growth = f"{ratios[0]:.1f}× for {ratios[1]:.3g}× points"
        before[line_of(r)] = r
        steps = " + ".join(map(str, r.get("half_steps", [])))
        error = f"{r['marginal_error']:.1e}" if "marginal_error" in r else ""
        rows.append([*row, f"{r['seconds']:.2f}", growth, f"{r['peak_mb']:.0f}", steps, error])
    header = ["d = 2", "N = M", "seconds", "growth", "peak MB", "half-steps", "marginal error"]
    note = f"Solved to tol = {report['tol']:g}. Measured on {report['machine']}."
    return markdown(header, rows) + "\n\n" + note


if __name__ == "__main__":
    begin(main, SETTINGS, cell=cell)
