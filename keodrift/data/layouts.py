"""Files of labelled latents: one rule a layout, and what does not fit names its file and key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from keodrift.checks import DTYPES, check_finite
from keodrift.errors import ArgumentError, DtypeError, OptionError, ShapeError
from keodrift.files import reading

ADULT_FROM, OLD_FROM = 18, 55
ALAE_FILES = ("latents.npy", "gender.npy", "age.npy")


class Parts(NamedTuple):
    """Latents and labels as a file holds them, with its held-out part where it has one."""

    z: Tensor
    labels: np.ndarray | None = None
    test: Tensor | None = None
    test_labels: np.ndarray | None = None


def as_points(name: str, z: Any, like: Tensor | None = None) -> Tensor:
    """An array or tensor ``(n, d)`` in float32, checked; what is float32 already is not copied.

    An array that may not be written to is copied, since a tensor may always be.

    Raises:
        DtypeError: Not floating-point numbers.
        ShapeError: Not ``(n, d)``, or not the dimension of ``like``.
        NonFiniteError: NaN or infinite coordinates.
    """
    if isinstance(z, np.ndarray) and z.dtype.kind == "f" and z.dtype.itemsize <= 8:
        z = torch.from_numpy(np.require(z, z.dtype.newbyteorder("="), ["C", "A", "W"]))
    if not isinstance(z, Tensor) or z.dtype not in DTYPES:
        raise DtypeError(name, getattr(z, "dtype", type(z).__name__), "floating-point numbers")
    if z.dim() != 2 or z.numel() == 0:
        raise ShapeError(name, f"shape {tuple(z.shape)}", "(n, d) with n ≥ 1 and d ≥ 1")
    if like is not None and z.shape[1] != like.shape[1]:
        raise ShapeError(name, f"d = {z.shape[1]}", f"the dimension of the others, {like.shape[1]}")
    points = z.detach().to(torch.float32)
    check_finite(name, points)
    return points


def as_labels(name: str, labels: Any, points: Tensor) -> np.ndarray:
    """Integers or strings ``(n,)``, one a point.

    Raises:
        DtypeError: Neither integers nor strings.
        ShapeError: Not one a point.
    """
    values = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if values.dtype.kind not in "iuU":
        raise DtypeError(name, values.dtype, "an array of integers or of strings")
    if values.shape != (len(points),):
        raise ShapeError(name, f"shape {values.shape}", f"one label a latent, ({len(points)},)")
    return values


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Puts the file or folder before the argument that an error of the block names."""
    try:
        yield
    except ArgumentError as error:
        raise type(error)(f"{path}: {error.argument}", error.got, error.needs) from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` by their keys.

    Raises:
        RunError: It is damaged, or needs pickle.
    """
    with reading(path), np.load(path) as stored:
        return {key: stored[key] for key in stored.files}


def read_parts(path: str | Path, *, ages: tuple[float, float] = (ADULT_FROM, OLD_FROM)) -> Parts:
    """Reads any of the layouts that `keodrift.data.Latents.load` states.

    Args:
        path: A file or a folder.
        ages: Where adults and the old begin, for a folder of genders and ages.

    Raises:
        ArgumentError: There is nothing there, or it does not fit its layout.
        RunError: A file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, ages)
    if not path.is_file() or path.suffix not in (".npz", ".npy"):
        got = "another kind of file" if path.exists() else "no such file or folder"
        raise OptionError("path", got, "a folder, an .npz or an .npy of latents")
    if path.suffix == ".npz":
        return Parts(*_archive(path))
    labels = path.with_name(f"{path.stem}_labels.npy")
    return _rows(path, labels if labels.exists() else None)


def _mapped(path: Path) -> np.ndarray:
    with reading(path):
        return np.load(path, mmap_mode="c")  # copy on write: nobody's file is changed


def _rows(latents: Path, labels: Path | None) -> Parts:
    z = as_points(latents.name, _mapped(latents))
    return Parts(z, None if labels is None else as_labels(labels.name, _mapped(labels), z))


def _archive(path: Path) -> tuple[Tensor, np.ndarray]:
    arrays = read_npz(path)
    if {"latents", "labels"} <= arrays.keys():
        if more := sorted(arrays.keys() - {"latents", "labels"}):
            needs = "latents and labels alone; a split is two files, train.npz and test.npz"
            raise OptionError("keys", ", ".join(more), needs)
        z = as_points("latents", arrays["latents"])
        return z, as_labels("labels", arrays["labels"], z)
    if not arrays or "labels" in arrays:
        got = ", ".join(sorted(arrays)) or "none"
        raise OptionError("keys", got, "latents and labels, or an array a class")
    clouds: dict[str, Tensor] = {}
    for key in sorted(arrays):
        clouds[key] = as_points(key, arrays[key], next(iter(clouds.values()), None))
    labels = np.repeat(list(clouds), [len(cloud) for cloud in clouds.values()])
    return torch.cat(list(clouds.values())), labels


def _folder(path: Path, ages: tuple[float, float]) -> Parts:
    def has(*names: str) -> bool:
        return all((path / name).is_file() for name in names)

    if has("train.npz", "test.npz"):
        parts: list[Any] = []
        for name in ("train.npz", "test.npz"):
            with naming(name):
                parts.extend(_archive(path / name))
        return Parts(*parts)
    if has(*ALAE_FILES):
        return _faces([_mapped(path / name) for name in ALAE_FILES], ages)
    if has("latents.npy", "labels.npy"):
        return _rows(path / "latents.npy", path / "labels.npy")
    needs = "train.npz and test.npz, or latents.npy with labels.npy, or with gender.npy and age.npy"
    held = sorted(file.name for file in path.iterdir())[:6]
    raise OptionError("path", f"a folder that begins with {held}", needs)


def _faces(columns: list[np.ndarray], ages: tuple[float, float]) -> Parts:
    z, gender, age = columns
    for name, column in zip(ALAE_FILES[1:], (gender, age), strict=True):
        if column.shape not in ((len(z),), (len(z), 1)):
            raise ShapeError(name, f"shape {column.shape}", f"one a latent, ({len(z)},)")
    if age.dtype.kind not in "iuf":
        raise DtypeError("age.npy", age.dtype, "numbers of years, −1 where unknown")
    gender, age = gender.reshape(-1).astype(str), age.reshape(-1)
    words = np.array(["children", "adult", "old"])[np.digitize(age, ages)]
    labels = np.char.add(np.char.add(gender, "_"), words)
    known = np.flatnonzero((age >= 0) & np.isin(gender, ("male", "female")))
    train, test = known[known < 6 * len(z) // 7], known[known >= 6 * len(z) // 7]
    first, last = as_points("latents.npy", z[train]), as_points("latents.npy", z[test])
    return Parts(first, labels[train], last, labels[test])
