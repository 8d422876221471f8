"""KeOps' index of compiled formulas, which many processes read on import and write at exit."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from keodrift.errors import BackendWarning, users_stacklevel


@contextlib.contextmanager
def index_lock() -> Iterator[None]:
    """Keeps the index of compiled formulas, read on import and written at exit, in one piece."""
    from filelock import FileLock, Timeout

    user = os.getuid() if hasattr(os, "getuid") else "all"
    lock = FileLock(Path(tempfile.gettempdir()) / f"keodrift-keops-{user}.lock")
    with contextlib.suppress(Timeout, OSError):
        lock.acquire(timeout=30)
    try:
        yield
    finally:
        lock.release()


def set_torn_aside() -> None:
    """Renames indices that a killed process left half written; KeOps could not be imported."""
    folder = os.environ.get("KEOPS_CACHE_FOLDER")
    roots = [Path(folder)] if folder else Path.home().glob(".cache/keops*")
    for index in [path for root in roots for path in root.glob("*/*_cache.pkl")]:
        try:
            pickle.loads(index.read_bytes())
        except Exception as error:  # a torn pickle may raise anything
            aside = index.replace(index.with_suffix(".torn"))
            message = f"KeOps' index of formulas was torn ({error}), and set aside as {aside}."
            warnings.warn(message, BackendWarning, stacklevel=users_stacklevel())
