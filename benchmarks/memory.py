"""Peak memory of one drift at growing N, engine by engine.

Each cell of the table is a process of its own, so its peak resident memory is that of one engine on
one problem: Python, torch, both clouds and all that the drift allocates. Two fields are measured,
in the plane with M = N: the one-sided field (one log-mass and barycentre a cloud) and the Sinkhorn
field after three half-steps. Peaks do not depend on the number of half-steps.

    python benchmarks/memory.py                     # 10 000, 30 000 and 100 000 points
    python benchmarks/memory.py sizes=[10000] backends=[tiled,keops]
    python benchmarks/memory.py show=true           # the table of the last run, for a page

The exit status is 1 when a streaming engine passes the limit or a cell fails.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from common import begin, in_own_process, machine, peak_mb

FIELDS = ("one-sided", "sinkhorn")
STREAMING = ("tiled", "keops", "cells")
MEGABYTE = 1e6
SETTINGS = {
    "sizes": [10_000, 30_000, 100_000],
    "backends": ["dense", *STREAMING],
    "fields": list(FIELDS),
    "device": "cpu",  # where the clouds live: cpu or cuda
    "dense_limit": 10_000,  # largest N for the dense engine
    "limit_mb": 600.0,  # what a streaming engine may take
    "show": False,  # print the table in output, measure nothing
    "output": "outputs/memory",
}


def measure(spec: dict) -> dict:
    """Runs one cell in this process."""
    import warnings

    import torch

    import keodrift as kd
    from keodrift.errors import BackendWarning

    field, backend, size, device = (spec[key] for key in ("field", "backend", "size", "device"))
    # A stand-in engine would be measured under the wrong name.
    warnings.simplefilter("error", BackendWarning)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 2, generator=generator).to(device)
    y = (torch.randn(size, 2, generator=generator) * 0.5 + 1.0).to(device)
    drift = (
        kd.OneSidedDrift(0.1, backend=backend)
        if field == "one-sided"
        else kd.SinkhornDrift(0.1, half_steps=3, backend=backend)
    )
    before, start = peak_mb(), time.perf_counter()
    velocity = drift(x, y)
    if not bool(torch.isfinite(velocity).all()):
        raise FloatingPointError(f"the {field} field is not finite")
    cell = {
        "seconds": time.perf_counter() - start,
        "before_mb": before,
        "peak_mb": peak_mb(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if torch.device(device).type == "cuda":
        cell["device_mb"] = torch.cuda.max_memory_allocated() / MEGABYTE
        cell["device"] = torch.cuda.get_device_name()
    return cell


def table(report: dict) -> str:
    """The cells as a Markdown table, peak memory in MB."""
    cells, sizes = report["cells"], report["sizes"]
    found = {(cell["field"], cell["backend"], cell["size"]): cell for cell in cells}
    lines = [
        "| field | engine | " + " | ".join(f"N = M = {size:,}" for size in sizes) + " |",
        "|---|---|" + "---:|" * len(sizes),
    ]
    for field, backend in dict.fromkeys((cell["field"], cell["backend"]) for cell in cells):
        row = [text(found.get((field, backend, size), {})) for size in sizes]
        lines.append(f"| {field} | {backend} | " + " | ".join(row) + " |")
    note = f"Peak memory in MB. Measured on {report['machine']}."
    return "\n".join([*lines, "", note])


def text(cell: dict) -> str:
    """One cell of the table."""
    if "peak_mb" not in cell:
        return next((key for key in ("refused", "error") if key in cell), "")
    if "device_mb" in cell:
        return f"{cell['device_mb']:.0f} (host {cell['peak_mb']:.0f})"
    return f"{cell['peak_mb']:.0f}"


def judged(cell: dict) -> float:
    """The memory a limit is about: the device's where there is one."""
    return cell.get("device_mb", cell["peak_mb"])


def plot(report: dict, path: Path) -> None:
    """Peaks over N, beside what one float32 matrix of all pairs would take."""
    from keodrift.plots import new_figure, save_figure

    figure, axes = new_figure(6, 4)
    panel = axes[0, 0]
    series: dict[tuple[str, str], list[dict]] = {}
    for cell in report["cells"]:
        if "peak_mb" in cell:
            series.setdefault((cell["field"], cell["backend"]), []).append(cell)
    for (field, backend), cells in series.items():
        panel.plot(
            [cell["size"] for cell in cells],
            [judged(cell) for cell in cells],
            color=f"C{('dense', *STREAMING).index(backend)}",
            marker="o" if field == "one-sided" else "s",
            linestyle="-" if field == "one-sided" else "--",
            label=f"{backend}, {field}",
        )
    sizes = report["sizes"]
    matrix = [4 * size**2 / MEGABYTE for size in sizes]
    panel.plot(sizes, matrix, "k:", label="one N×M matrix in float32")
    panel.axhline(report["limit_mb"], color="0.6", label="limit for streaming")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("points a cloud, N = M")
    panel.set_ylabel("peak memory [MB]")
    panel.set_title("Peak memory of one drift, a process a point", fontsize="medium")
    panel.legend(fontsize="small")
    save_figure(figure, path)


def main(options) -> int:
    from keodrift.errors import OptionError
    from keodrift.files import write_json

    output = Path(options.output)
    results = output / "memory.json"
    if options.show:
        if not results.exists():
            raise OptionError("show", f"no {results}", "a run without it first")
        print(table(json.loads(results.read_text())))
        return 0

    cells: list[dict] = []
    report = {
        "machine": machine(options.device),
        "limit_mb": options.limit_mb,
        "sizes": list(options.sizes),
        "cells": cells,
    }
    for field in options.fields:
        for backend in options.backends:
            for size in options.sizes:
                name = f"{field}, {backend}, N = M = {size:,}"
                cell = {"field": field, "backend": backend, "size": size}
                if backend == "dense" and size > options.dense_limit:
                    cell["refused"] = f"above dense_limit {options.dense_limit}"
                else:
                    print(f"{name} …", file=sys.stderr, flush=True)
                    cell |= in_own_process(__file__, cell | {"device": options.device})
                    if "error" in cell:
                        print(f"{name}: {cell['error']}", file=sys.stderr)
                cells.append(cell)
                write_json(results, report)
    plot(report, output / "memory.png")
    print(table(report))
    measured = [cell for cell in cells if cell["backend"] in STREAMING and "peak_mb" in cell]
    over = [cell for cell in measured if judged(cell) > options.limit_mb]
    if measured:
        top = max(map(judged, measured))
        verdict = "above" if over else "within"
        print(f"\nStreaming peak {top:.0f} MB: {verdict} the limit of {options.limit_mb:.0f} MB.")
    return int(bool(over) or any("error" in cell for cell in cells))


if __name__ == "__main__":
    choices = {"backends": ["dense", *STREAMING], "fields": FIELDS}
    begin(main, SETTINGS, choices, measure)
