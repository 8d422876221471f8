"""How many half-steps a solve takes: plain, extrapolated, and from a coarse start.

    python benchmarks/solver.py
    python benchmarks/solver.py size=10000 tolerances=[1e-3] seeds=1

Each half-step is one pass over all pairs. Counted are those on the full problem, the one of the
barycentre included; coarse levels cost a fraction of one. *Plain* alternates from g = 0, *Anderson*
extrapolates from there, *coarse start* begins at the potential of clusters as `SinkhornDrift` does.
The kernel is exp(−‖x−y‖²/τ). With ``reach=`` every problem has a second row, with marginals relaxed
at that price, in the unit of ‖x−y‖². The exit status is 1 where a coarse start takes more
half-steps than plain alternation, or float32 misses a tolerance that float64 reaches.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import torch
from common import begin, machine, markdown
from field_error import PROBLEMS, clouds
from tqdm.auto import tqdm

from keodrift.costs import squared
from keodrift.files import write_json
from keodrift.transport import EntropicProblem, Sinkhorn, coarse, zero

WAYS = ("plain", "Anderson", "coarse start", "coarse start, float32")
SETTINGS = {
    "problems": ["half-trained", "checkerboard", "blob", "mixture"],
    "size": 2000,
    "d": 6,  # dimension (mixture only)
    "taus": [0.1, 0.01],
    "tolerances": [1e-3, 1e-4],
    "seeds": 3,
    "cap": 4000,  # half-steps at most
    "reach": 0.0,  # of relaxed marginals, in rows of their own; 0 for none
    "device": "cpu",
    "output": "outputs/solver",
}


def count(way: str, x, y, tau: float, tol: float, cap: int, reach: float | None = None):
    """Half-steps, marginal error and seconds of one way."""
    if way.endswith("float32"):
        x, y = x.float(), y.float()
    a, b = (z.new_full((len(z),), 1 / len(z), dtype=torch.float64) for z in (x, y))
    problem = EntropicProblem(x, y, a, b, squared, tau, reach=reach)
    _ = problem.kernel
    begun = time.perf_counter()
    if way == "plain":
        g, steps, error = torch.zeros_like(b), 0, torch.inf
        while error > tol and steps < cap:
            image = problem.column_step(problem.row_step(g))
            g, error, steps = image, float(problem.marginal_error(g, image)), steps + 2
        return steps + 1, error, time.perf_counter() - begun
    solver = Sinkhorn(tol=tol, max_half_steps=cap)
    found = solver.solve(problem, coarse if way.startswith("coarse") else zero)
    return found.half_steps, float(found.error), time.perf_counter() - begun


def table(report: dict) -> str:
    """Mean half-steps of each way, case by case."""
    results, rows = report["rows"], []
    for case in dict.fromkeys((r["problem"], r["tau"], r["tol"], r["reach"]) for r in results):
        mine = [r for r in results if (r["problem"], r["tau"], r["tol"], r["reach"]) == case]
        columns = []
        for way in WAYS:
            steps = [r[way]["half_steps"] for r in mine]
            capped = any(r[way]["error"] > case[2] for r in mine)
            columns.append(f"> {report['cap']}" if capped else f"{sum(steps) / len(steps):.0f}")
        times = [r["coarse start, float32"]["seconds"] for r in mine]
        columns.append(f"{sum(times) / len(times):.2f}")
        relaxed = "" if case[3] is None else f", reach {case[3]:g}"
        rows.append([f"{case[0]}, τ = {case[1]:g}, tol {case[2]:g}{relaxed}", *columns])
    header = ["half-steps to a marginal error", *WAYS, "its seconds"]
    draws = len({r["seed"] for r in results})
    note = f"N = M = {report['size']}, mean of {draws} draws. Measured on {report['machine']}."
    return markdown(header, rows) + "\n\n" + note


def main(options) -> int:
    how = options.problems, options.taus, options.tolerances
    cases = list(itertools.product(*how, [None, options.reach] if options.reach else [None]))
    results, failed = [], []
    for problem, tau, tol, reach in tqdm(cases, unit="problem"):
        for seed in range(options.seeds):
            d = options.d if problem == "mixture" else 2
            x, y = (z.to(options.device) for z in clouds(problem, options.size, d, seed))
            found = {}
            for way in WAYS:
                steps, error, taken = count(
                    way, x.double(), y.double(), tau, tol, options.cap, reach
                )
                found[way] = {"half_steps": steps, "error": error, "seconds": taken}
            case = {"problem": problem, "tau": tau, "tol": tol, "reach": reach, "seed": seed}
            results.append(case | found)
            coarse, single = found["coarse start"], found["coarse start, float32"]
            if coarse["half_steps"] > found["plain"]["half_steps"]:
                failed.append(
                    f"{problem}, τ = {tau:g}, tol {tol:g}, seed {seed}: slower than plain"
                )
            if coarse["error"] <= tol < single["error"]:
                failed.append(f"{problem}, τ = {tau:g}, tol {tol:g}, seed {seed}: float32 missed")
            report = {"machine": machine(options.device), "size": options.size, "cap": options.cap}
            write_json(Path(options.output) / "solver.json", report | {"rows": results})
    print("\n" + table(report | {"rows": results}))
    print("\n".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    begin(main, SETTINGS, {"problems": PROBLEMS})
