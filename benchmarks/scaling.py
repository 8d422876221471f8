"""How time, memory and error of one converged field grow with the number of points, beside peers.

    python benchmarks/scaling.py
    python benchmarks/scaling.py dimensions=[2] tau=0.01 peers=[keodrift] name=small-tau
    python benchmarks/scaling.py sizes=[1000,3000] limit=20 output=outputs/small

Every cell computes V once at all particles, in float32 and a process of its own, under
exp(−‖x−y‖²/τ): half-trained eight Gaussians in the plane, a mixture of eight in higher d. Its
error is relative L2 over 256 of the particles, beside our float64 field at tol = 1e-5; where that
takes longer than ``reference_limit``, errors are left out. A cell that passes ``limit`` seconds is
stopped and reported as such; one that would take longer even at linear growth is not run, nor is
one whose stored matrices do not fit. Cells are kept in output/cells: run again, the script does
what is missing or was stopped at a smaller limit.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from common import begin, in_own_process, machine, markdown, peak_mb, synchronise

PROBLEMS = {2: ("half-trained", 0.1), 6: ("mixture", 0.1), 64: ("mixture", 1.0)}
REFERENCE = ("reference", 1e-5)
# A label, and what `field_error.drift` calls it at which setting.
PEERS = {
    "keodrift": ("keodrift, tol", 1e-3),
    "dense torch, 20 sweeps": ("dense torch, sweeps", 20),
    "stock KeOps, 20 sweeps": ("stock KeOps, sweeps", 20),
    "GeomLoss online, 0.9": ("GeomLoss online, scaling", 0.9),
    "GeomLoss multiscale, 0.9": ("GeomLoss multiscale, scaling", 0.9),
}
SETTINGS = {
    "dimensions": list(PROBLEMS),
    "sizes": [1000, 3162, 10_000, 31_623, 100_000, 316_228, 1_000_000],
    "tau": None,  # by default that of the dimension's problem
    "peers": [],  # words in the names of peers; all if there are none
    "limit": 300.0,  # seconds a cell may take
    "reference_limit": 900.0,
    "memory": 8.0,  # GB that stored matrices may take
    "device": "cpu",
    "name": "growth",  # of the result
    "output": "outputs/scaling",
}
COMPARED = 256  # particles
START = 120.0  # seconds beside its limit in which a process may start and compile


def cell(spec: dict) -> dict:
    """Computes one field in this process and says what it took."""
    from field_error import clouds, drift

    import keodrift as kd

    peer, value = spec["call"]

    def sample(size: int):
        return (z.to(spec["device"]) for z in clouds(spec["problem"], size, spec["d"]))

    ours = "keodrift" in peer or peer == REFERENCE[0]
    fast = value if ours else 0.5 if "scaling" in peer else 2
    drift(peer, fast, *sample(3000 if ours else 200), spec["tau"])  # compiles
    x, y = sample(spec["size"])
    synchronise(spec["device"])
    begun = time.perf_counter()
    v = drift(peer, value, x, y, spec["tau"])
    synchronise(spec["device"])
    out = {"seconds": time.perf_counter() - begun, "peak_mb": peak_mb()}
    if "keodrift" in peer:
        shape = len(x), len(y), spec["d"]
        out["engine"] = kd.choose_backend(*shape, device=x.device.type, cost="squared").engine
    return out | {"v": v[:: max(1, len(v) // COMPARED)][:COMPARED].double().tolist()}


def done(spec: dict, before: dict | None, limit: float, memory: float, folder: Path) -> dict:
    """A cell from disk, or run now, or why it was not."""
    from keodrift.files import read_json, write_json

    name = "-".join(str(spec[key]) for key in ("problem", "d", "tau", "peer", "size", "device"))
    path = folder / f"{name.replace(' ', '_').replace(',', '')}.json"
    if path.exists():
        out = read_json(path)
        if "seconds" in out or out["limit"] >= limit:
            return out
    grown = 1.0 if before is None else spec["size"] / before["size"]
    stored = 16e-9 * spec["size"] ** 2  # two matrices, and what a step makes of them
    if before is not None and grown * before.get("seconds", math.inf) > limit:
        least = "seconds" in before
        words = f"at least {grown * before['seconds']:.0f} s" if least else before["error"]
        found = {"error": words if words.endswith("not run") else f"{words}, not run"}
    elif "dense" in spec["peer"] and stored > memory:
        found = {"error": f"{stored:.2g} GB, not run"}
    else:
        found = in_own_process(__file__, spec, limit + START)
        if found.get("error", "").startswith("over"):
            found = {"error": f"over {limit:.0f} s"}
    write_json(path, spec | found | {"limit": limit})
    return spec | found | {"limit": limit}


def main(options) -> None:
    import torch

    from keodrift.files import write_json

    output, rows = Path(options.output), []
    chosen = [p for p in PEERS if not options.peers or any(word in p for word in options.peers)]
    for d in options.dimensions:
        problem, tau = PROBLEMS[d]
        truth: dict[int, dict] = {}
        for peer, call in {"reference": REFERENCE, **{p: PEERS[p] for p in chosen}}.items():
            if d > 3 and "multiscale" in peer:
                continue
            out = None
            for size in options.sizes:
                spec = {"problem": problem, "d": d, "tau": options.tau or tau, "size": size}
                spec |= {"peer": peer, "call": call, "device": options.device}
                limit = options.reference_limit if peer == "reference" else options.limit
                out = done(spec, out, limit, options.memory, output / "cells")
                row = dict(out)
                v = row.pop("v", None)
                if peer == "reference":
                    truth[size] = out
                elif v is not None and "v" in truth[size]:
                    v, exact = (torch.tensor(z, dtype=torch.float64) for z in (v, truth[size]["v"]))
                    row["field_error"] = float((v - exact).norm() / exact.norm())
                rows.append(row)
                print(" | ".join(shown(row)), flush=True)
                report = {"machine": machine(options.device), "rows": rows}
                write_json(output / f"{options.name}.json", report)
    print("\n" + table(report))
    plot(rows, output / f"{options.name}.png")


def shown(row: dict) -> list[str]:
    engine = f" ({row['engine']})" if "engine" in row else ""
    name = f"{row['problem']}, d = {row['d']}, τ = {row['tau']:g}, {row['peer']}{engine}"
    if "error" in row:
        return [name, f"{row['size']:,}", row["error"], "", ""]
    error = f"{row['field_error']:.2%}" if "field_error" in row else ""
    return [name, f"{row['size']:,}", f"{row['seconds']:.2f}", f"{row['peak_mb']:.0f}", error]


def table(report: dict) -> str:
    """Time, memory and error, size by size."""
    header = ["problem, peer", "N = M", "seconds", "peak MB", "field error"]
    rows = [shown(row) for row in report["rows"] if row["peer"] != "reference"]
    return markdown(header, rows) + f"\n\nMeasured on {report['machine']}."


def plot(rows: list[dict], path: Path) -> None:
    """Time, memory and error over N, a column a dimension."""
    from keodrift.plots import new_figure, save_figure

    dimensions = list(dict.fromkeys(row["d"] for row in rows))
    figure, axes = new_figure(4 * len(dimensions), 9, 3, len(dimensions))
    kinds = {
        "seconds": "time of one field [s]",
        "peak_mb": "peak memory [MB]",
        "field_error": "relative L2 error of the field",
    }
    for column, d in enumerate(dimensions):
        mine = [row for row in rows if row["d"] == d and row["peer"] != "reference"]
        for panel, (key, words) in zip(axes[:, column], kinds.items(), strict=True):
            for peer in dict.fromkeys(row["peer"] for row in mine):
                line = [row for row in mine if row["peer"] == peer and key in row]
                color = f"C{list(PEERS).index(peer)}"
                panel.plot(
                    [r["size"] for r in line], [r[key] for r in line], "o-", color=color, label=peer
                )
            if not any(len(line.get_xdata()) for line in panel.lines):
                panel.set_axis_off()
                continue
            panel.set(xscale="log", yscale="log", ylabel=words)
            panel.grid(alpha=0.3, lw=0.4)
        axes[0, column].set_title(
            f"{mine[0]['problem']}, d = {d}, τ = {mine[0]['tau']:g}", fontsize="medium"
        )
        axes[-1, column].set_xlabel("points N = M")
    axes[0, 0].legend(fontsize="x-small")
    save_figure(figure, path)


if __name__ == "__main__":
    begin(main, SETTINGS, {"dimensions": list(PROBLEMS)}, cell)
