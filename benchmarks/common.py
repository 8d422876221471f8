"""What the benchmark scripts share: the machine in words, timing, results on disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

# torch is imported where it is used: a script that measures memory keeps its own process small.


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
    if device.startswith("cuda"):
        import torch

        parts.append(torch.cuda.get_device_name())
    versions = " ".join(
        f"{p} {version(p)}" for p in ("torch", "pykeops", "geomloss", "POT", "ott-jax")
    )
    day = time.strftime("%Y-%m-%d")
    return ", ".join(
        [*parts, platform.system(), f"Python {platform.python_version()}", versions, day]
    )


def seconds(call: Callable[[], object], device: str = "cpu", repeats: int = 5) -> float:
    """Median time of a call, after one that is not counted; waits for a GPU to finish."""

    def once() -> float:
        begun = time.perf_counter()
        call()
        if device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        return time.perf_counter() - begun

    once()
    return sorted(once() for _ in range(repeats))[repeats // 2]


def write(path: Path, data: dict) -> None:
    """JSON on disk, all or nothing, without importing what makes a process large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=2))
    part.replace(path)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; numbers are right-aligned."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
