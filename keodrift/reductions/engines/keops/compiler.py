"""KeOps, used without leaving a trace: imported late, quiet, with its own compiler flags.

On a CPU the plain sums gain an order of magnitude from vectorised exponentials, which gcc only
emits under ``-ffast-math``. Given to the *driver*, that flag also links start-up code which
switches the whole process to flush-to-zero; given to the *compiler proper* (``-Wp,``) it does not.
The flags apply to this package's sums alone: other KeOps formulas of the process, and our own
log-sum-exp with its infinities, are compiled as KeOps would.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import io
import os
import platform
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from keodrift.costs import Cost
from keodrift.errors import BackendWarning, users_stacklevel
from keodrift.reductions.engines.keops.device import refuse_device_failures
from keodrift.reductions.engines.keops.index import index_lock, set_torn_aside

# gcc on x86-64 is where these were tried; elsewhere KeOps' own flags give the same numbers, slower.
FAST_FLAGS = (
    "-march=native -mprefer-vector-width=512 -Wp,-ffast-math"
    if platform.system() == "Linux" and platform.machine() == "x86_64"
    else ""
)

# Formulas that KeOps could not compile, and why: each costs itself alone.
failed: dict[object, str] = {}

_lock = threading.RLock()
_compiled: set[object] = set()
_at_exit = contextlib.ExitStack()
_broken: dict[str, str] = {}  # why nothing compiles, by type of device
_warned: set[Cost] = set()
_fast_flags_work = bool(FAST_FLAGS)
_loaded = False


def _fresh_lock() -> None:
    """A forked child has no other thread that could release the lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)


def failure(device: str = "cpu") -> str | None:
    """Why KeOps compiles nothing for a type of device in this process, or None while it does."""
    return _broken.get(device)


def missing() -> bool:
    """Whether no C++ compiler is in sight (``CXX``, else g++ or clang++)."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    return not any(name and shutil.which(name) for name in names)


def fast_flags_work() -> bool:
    """Whether the compiler is not known to refuse `FAST_FLAGS`."""
    return _fast_flags_work


def report_failure(
    error: BaseException, formula: object, cost: Cost, device: str, *, fast: bool = False
) -> None:
    """Remembers that a formula does not compile, or the fast flags, or nothing; and says so once.

    Args:
        error: What KeOps, or the cost on LazyTensors, raised.
        formula: What `failed` knows it by.
        cost: The cost in it.
        device: Type of the device.
        fast: It was compiled with the fast flags, which are then given up.

    Raises:
        EngineError: The formula did compile, and the device failed.
    """
    global _fast_flags_work
    refuse_device_failures(error, device)
    if fast:
        _fast_flags_work = False
        return
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    failed[formula] = reason
    if not _compiles(device):
        told, _broken[device] = device in _broken, reason
        advice = "KeOps needs a C++ compiler (g++) and the Python headers."
        message = f"KeOps could not compile ({reason}); the tiled engine answers instead. {advice}"
    else:
        told = cost in _warned
        _warned.add(cost)
        message = f"KeOps cannot compile {cost.name} ({reason}); the tiled engine answers instead."
    if not told:
        warnings.warn(message, BackendWarning, stacklevel=users_stacklevel())


def _compiles(device: str) -> bool:
    """Whether KeOps compiles the plainest of formulas."""
    try:
        with session(f"probe {device}"):
            ones = torch.ones(2, 1, dtype=torch.float32, device=device)
            backend = "GPU" if device == "cuda" else "CPU"
            genred("X*Y", ["X=Vi(1)", "Y=Vj(1)"], axis=1)(ones, ones, backend=backend)
    except (Exception, SystemExit) as error:
        refuse_device_failures(error, device)
        return False
    return True


def load() -> ModuleType:
    """Imports ``pykeops.torch`` without its start-up messages."""
    global _loaded
    if _loaded:
        return sys.modules["pykeops.torch"]
    silent = contextlib.redirect_stdout(io.StringIO())
    with (
        index_lock(),
        _environment(PYKEOPS_VERBOSE="0"),
        _floating_point_state(),
        silent,
    ):
        if "pykeops.torch" not in sys.modules:
            set_torn_aside()
        module = importlib.import_module("pykeops.torch")
    # Handlers run last in, first out: this one holds the lock while KeOps writes its index. It is
    # wanted as much where somebody else imported KeOps first.
    atexit.register(lambda: _at_exit.enter_context(index_lock()))
    _loaded = True
    return module


@contextlib.contextmanager
def session(name: str, identity: object = None, *, fast: bool = False) -> Iterator[None]:
    """Runs KeOps calls quietly, restoring flags, verbosity and floating-point state.

    The first call of each formula may compile, which takes seconds; a file lock keeps processes
    with a cold cache from colliding there.

    Args:
        name: Names the formula, the same in every process.
        identity: Tells formulas of one name apart within this process.
        fast: Compile with vectorised exponentials.
    """
    with _lock:
        load()
        key = (name, identity, fast)
        first = key not in _compiled
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quiet())
            stack.enter_context(_floating_point_state())
            if fast:
                stack.enter_context(_flags(FAST_FLAGS))
            if first:
                stack.enter_context(_compile_lock(f"{name} {fast}"))
            yield
        _compiled.add(key)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    keops_verbose = os.environ.get("KEOPS_VERBOSE")
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in [*before.items(), ("KEOPS_VERBOSE", keops_verbose)]:
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import keopscore
    import pykeops

    before = pykeops.verbose
    pykeops.set_verbose(False)
    try:
        yield
    finally:
        pykeops.verbose = before
        keopscore.verbose = before


@contextlib.contextmanager
def _flags(extra: str) -> Iterator[None]:
    """Adds compiler flags; they enter the name of the compiled file, so nothing is shared."""
    from keopscore.binders import LinkCompile as binder
    from keopscore.config import config

    config_before, binder_before = config.cpp_flags, binder.cpp_flags
    config.cpp_flags = f"{config_before} {extra}"
    binder.cpp_flags = f"{binder_before} {extra}"
    try:
        yield
    finally:
        config.cpp_flags, binder.cpp_flags = config_before, binder_before


@contextlib.contextmanager
def _floating_point_state() -> Iterator[None]:
    flushed = _flushes_denormals()
    try:
        yield
    finally:
        # A module compiled with other flags may have switched the process to flush-to-zero.
        if _flushes_denormals() != flushed:
            torch.set_flush_denormal(flushed)


def _flushes_denormals() -> bool:
    small, half = sys.float_info.min, 0.5
    return small * half == 0.0


@contextlib.contextmanager
def _compile_lock(name: str) -> Iterator[None]:
    """One process at a time compiles a formula; others compile other ones meanwhile."""
    from filelock import FileLock
    from keopscore.config import config

    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    with FileLock(Path(str(config.get_build_folder())) / f"keodrift-{digest}.lock"):
        yield


def genred(*args: Any, **kwargs: Any) -> Any:
    """``pykeops.torch.Genred``, imported on first use."""
    return load().Genred(*args, **kwargs)
