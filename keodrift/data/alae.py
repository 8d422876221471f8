"""Latents of faces in the two layouts in which those of an ALAE are public, real or made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keodrift.checks import check_choice, check_positive
from keodrift.data.latents import Latents
from keodrift.data.layouts import ADULT_FROM, ALAE_FILES, OLD_FROM, naming, read_parts
from keodrift.errors import OptionError
from keodrift.files import atomic_path

# In the sorted order in which any labels are numbered, each with an age inside its range.
AGES = {"adult": 30, "children": 8, "old": 70}
ALAE_CLASSES = tuple(f"{gender}_{word}" for gender in ("female", "male") for word in AGES)
LAYOUTS = ("classes", "rows")


def load_alae(
    path: str | Path, *, adult_from: float = ADULT_FROM, old_from: float = OLD_FROM, **options: Any
) -> Latents:
    """Latents of faces in six classes: female or male, children, adult or old.

    Args:
        path: A folder with ``train.npz`` and ``test.npz``, each with the six arrays
            ``female_adult`` … ``male_old`` ``(n_c, d)``; or a folder with ``latents.npy``
            ``(n, d)``, ``gender.npy`` (strings) and ``age.npy`` (years), whose first six sevenths
            (60 000 of 70 000) are to train on. Rows of an unknown (negative) age, or of another
            gender, are left out.
        adult_from: First age of an adult, in years; children are younger. This and the next
            are choices of this library: the paper states none.
        old_from: First age of the old.
        **options: Of `Latents.from_arrays`: ``encode``, ``decode``, ``image_shape``.

    Raises:
        ArgumentError: Something is missing or of the wrong shape; it names the file and the key.
        RunError: A file is damaged.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_synthetic_alae(folder, per_class=2, dim=8)
        >>> latents = load_alae(folder)
        >>> latents.train.shape, latents.class_names[:2]
        (torch.Size([72, 8]), ('female_adult', 'female_children'))
    """
    if not 0 < adult_from < old_from:
        raise OptionError("adult_from", adult_from, f"an age between 0 and old_from = {old_from}")
    with naming(path):
        parts = read_parts(path, ages=(adult_from, old_from))
        return Latents.from_arrays(**parts._asdict(), class_names=ALAE_CLASSES, **options)


def write_synthetic_alae(
    folder: str | Path,
    *,
    layout: str = "classes",
    per_class: int = 100,
    dim: int = 512,
    seed: int = 0,
) -> None:
    """Writes made-up latents that `load_alae` reads, to try a pipeline without the real ones.

    Each class is a Gaussian about a mean of its own, of norm about 6: along up to 32 directions of
    its own the standard deviation is 4/√k, k = 1, 2, …, and 0.1 is added along all.

    Args:
        folder: Where to write; a folder that is new or empty.
        layout: ``"classes"`` for one array a class and part, ``"rows"`` for latents with a gender
            and an age each; the latents are the same, and rows of unknown age join them.
        per_class: Held-out latents of each class; six times as many are to train on.
        dim: Dimension of the latents.
        seed: Decides all that is random.

    Raises:
        OptionError: The layout is unknown, a size not positive, or the folder not empty.
        RunError: The system refused.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_synthetic_alae(folder, layout="rows", per_class=2, dim=8)
        >>> sorted(file.name for file in folder.iterdir())
        ['age.npy', 'gender.npy', 'latents.npy']
    """
    check_choice("layout", layout, LAYOUTS)
    check_positive("per_class", per_class, integer=True)
    check_positive("dim", dim, integer=True)
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OptionError("folder", folder, "a new or an empty folder")
    generator = torch.Generator().manual_seed(seed)
    clouds = {name: _cloud(7 * per_class, dim, generator).numpy() for name in ALAE_CLASSES}
    train: dict[str, Any] = {name: z[per_class:] for name, z in clouds.items()}
    test: dict[str, Any] = {name: z[:per_class] for name, z in clouds.items()}
    if layout == "classes":
        for name, part in (("train.npz", train), ("test.npz", test)):
            with atomic_path(folder / name) as draft:
                np.savez(draft, **part)
        return
    columns = zip(*(_rows(part, n, generator) for part, n in ((train, 6), (test, 1))), strict=True)
    for name, halves in zip(ALAE_FILES, columns, strict=True):
        with atomic_path(folder / name) as draft:
            np.save(draft, np.concatenate(halves))


def _cloud(n: int, dim: int, generator: torch.Generator) -> Tensor:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    rank = min(dim, 32)
    axes = torch.linalg.qr(normal(dim, rank)).Q
    spread = 4 / torch.arange(1, rank + 1, dtype=torch.float32).sqrt()
    mean = 6 * normal(dim) / dim**0.5
    return mean + (normal(n, rank) * spread) @ axes.T + 0.1 * normal(n, dim)


def _rows(
    part: dict[str, np.ndarray], unknown: int, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All latents of a part in mixed order, with genders and ages, and some of unknown age."""
    z = np.concatenate([*part.values(), next(iter(part.values()))[:unknown]])
    sizes = [*(len(cloud) for cloud in part.values()), unknown]
    genders, words = zip(*(name.split("_") for name in part), strict=True)
    gender = np.repeat([*genders, "male"], sizes)
    age = np.repeat([*(AGES[word] for word in words), -1], sizes)
    order = torch.randperm(len(z), generator=generator).numpy()
    return z[order], gender[order], age[order]
