"""Tensors that are made once and kept: a file is named by all that decides what it holds.

A file holds a digest of its own tensors as well, so that damage is seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from keodrift.errors import users_stacklevel
from keodrift.files import atomic_path, writing

Cache = str | os.PathLike[str] | None


def cache_folder(cache: Cache = None) -> Path:
    """Where weights and latents are kept.

    Args:
        cache: The folder; None takes the environment variable KEODRIFT_CACHE, and without it
            ``~/.cache/keodrift``.

    Example:
        >>> cache_folder("kept").name
        'kept'
    """
    return Path(cache or os.environ.get("KEODRIFT_CACHE") or "~/.cache/keodrift").expanduser()


def digest(tensors: Mapping[str, Tensor], settings: object = None) -> str:
    """sha256 of tensors with their names, shapes and dtypes, and of settings."""
    found = hashlib.sha256(json.dumps(settings, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        found.update(tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def cached(
    name: str, key: str, cache: Cache, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors from their file, or made and kept there; of two processes, one makes them."""
    path = cache_folder(cache) / f"{name}-{key[:20]}.safetensors"
    if path.exists() and (kept := _intact(path)) is not None:
        return kept  # from a folder that may be read-only
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    try:
        if path.exists():
            kept = _intact(path)
            if kept is not None:
                return kept
            text = f"{path} is damaged: its contents are made anew."
            warnings.warn(text, RuntimeWarning, stacklevel=users_stacklevel())
        tensors = {part: tensor.contiguous() for part, tensor in make().items()}
        with atomic_path(path) as draft:
            draft.write_bytes(save(tensors, {"sha256": digest(tensors)}))
        return tensors
    finally:
        lock.release()


def _intact(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file, or None where a byte of it is not as it was written."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            written = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None
    return tensors if written == digest(tensors) else None
