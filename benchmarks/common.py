"""What the benchmark scripts share: the machine in words, timing, results on disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# torch is imported where it is used: on Linux a process inherits the peak memory of the one that
# starts it, so a script loads no more than its cells do until the last of them is done.
CELL = "cell="  # the word that a script gives itself in a process of its own


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def machine(device: str = "cpu") -> str:
    """Processor, device and versions, in one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    parts = [f"{cpu}, {os.cpu_count()} logical cores"]
    packages = ["torch", "pykeops", "geomloss", "POT", "ott-jax"]
    if device.startswith("cuda"):
        import torch

        parts.append(torch.cuda.get_device_name())
        packages.append("flash-sinkhorn")
    versions = " ".join(f"{p} {version(p)}" for p in packages)
    day = time.strftime("%Y-%m-%d")
    return ", ".join(
        [*parts, platform.system(), f"Python {platform.python_version()}", versions, day]
    )


def seconds(call: Callable[[], object], device: str = "cpu", repeats: int = 5) -> float:
    """Median time of a call, after one that is not counted; waits for a GPU to finish."""
    return seconds_in_turn({"": call}, device, repeats)[""]


def seconds_in_turn(
    calls: dict[str, Callable[[], object]], device: str = "cpu", repeats: int = 5
) -> dict[str, float]:
    """The same of several: a machine's pace drifts by a third in a minute."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in [*calls.items()] * (1 + repeats):
        begun = time.perf_counter()
        call()
        synchronise(device)
        times[name].append(time.perf_counter() - begun)
    return {name: sorted(taken[1:])[repeats // 2] for name, taken in times.items()}


def peak_mb(device: str = "cpu") -> float:
    """Peak resident memory of this process, or what torch has allocated at most on a GPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def begin(
    main: Callable, defaults: dict, choices: dict | None = None, cell: Callable | None = None
) -> NoReturn:
    """Runs a script with the settings of its command line, or the one cell of `in_own_process`."""
    if cell is not None and sys.argv[1:2] and sys.argv[1].startswith(CELL):
        print(json.dumps(cell(json.loads(sys.argv[1].removeprefix(CELL)))))
        sys.exit()
    from keodrift.settings import run_script

    run_script(main, defaults, choices=choices)


def in_own_process(script: str, spec: dict, limit: float | None = None) -> dict:
    """What a script's cell finds for a spec, or its failure in words under ``"error"``.

    Times and peaks of memory are then those of one cell.
    """
    command = [sys.executable, str(Path(script).resolve()), CELL + json.dumps(spec)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"over {limit:.0f} s"}
    if done.returncode != 0:
        last = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        return {"error": last[-1][:80]}
    return json.loads(done.stdout.splitlines()[-1])


def normal_log_sum(logits, dim: int, keepdim: bool):
    """Log-sum-exp without denormals, which are slow: a term counts for exp(−80) of the largest."""
    top = logits.amax(dim, keepdim=keepdim)
    return (logits - top).clamp_(min=-80).exp_().sum(dim, keepdim=keepdim).log_().add_(top)


def synchronise(device: str) -> None:
    """Waits for what was started on a GPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; numbers are right-aligned."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
