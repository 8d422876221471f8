"""What the tests share: the folder's own modules, seeded clouds, and who may need KeOps."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # `import reference` from any test

# The same examples every time, and no clock: a slow machine is not a wrong answer.
settings.register_profile("keodrift", derandomize=True, deadline=None, max_examples=10)
settings.load_profile("keodrift")

COMPILERS = [os.environ.get("CXX", ""), "g++", "clang++"]


@pytest.fixture
def keops() -> None:
    """Asks for the KeOps engine itself: a fallback to another engine fails the test."""
    if not any(name and shutil.which(name) for name in COMPILERS):
        pytest.skip("KeOps needs a C++ compiler, and neither g++ nor clang++ was found")
    from keodrift.reductions.engines.keops import compiler

    assert compiler.failure() is None, "KeOps failed earlier in this run"
    before = dict(compiler.failed)
    yield
    assert compiler.failed == before, "another engine answered for KeOps"


@pytest.fixture
def cloud() -> Callable[..., Tensor]:
    """``cloud(seed, *shape)``: standard normal points, float64 by default."""

    def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw


@pytest.fixture
def resized(monkeypatch) -> Callable[..., None]:
    """``resized(tile=100)``: other sizes of what a CPU works on at a time."""
    from keodrift.reductions.sizes import SIZES

    def change(**sizes: int) -> None:
        monkeypatch.setitem(SIZES, "cpu", replace(SIZES["cpu"], **sizes))

    return change
