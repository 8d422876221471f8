"""Labelled latents of any model: from arrays, from files, and drawn class by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keodrift.data.layouts import as_labels, as_points, naming, read_parts
from keodrift.errors import ArgumentError, DtypeError, OptionError, ShapeError

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Latents:
    """Labelled latent vectors, split in two, with the maps to and from images where known.

    Attributes:
        train: Latents to learn from, ``(n, d)`` float32.
        train_labels: Their classes, ``(n,)`` int64 in 0…classes−1.
        test: Held-out latents, ``(m, d)``.
        test_labels: Their classes, ``(m,)``.
        encode: Images ``(…, *image_shape)`` in [0, 1] to latents ``(…, d)``.
        decode: Latents ``(…, d)`` to images ``(…, *image_shape)``, clipped to [0, 1].
        image_shape: Shape of one image.
        class_names: One name a class; ``"0"``, ``"1"``, … where none are given.

    Raises:
        ShapeError: Not ``(n, d)`` in both parts, or not one label a latent.
        DtypeError: Latents are not float32, or labels not int64.
        OptionError: A label is no class, or a class has no latent in one of the parts.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> Latents(torch.randn(4, 3), labels, torch.randn(4, 3), labels).class_names
        ('0', '1')
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    encode: Map | None = None
    decode: Map | None = None
    image_shape: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        parts = {
            "train": (self.train, self.train_labels),
            "test": (self.test, self.test_labels),
        }
        for name, (points, labels) in parts.items():
            if points.dtype != torch.float32 or labels.dtype != torch.int64:
                got = f"{points.dtype} with {labels.dtype} labels"
                raise DtypeError(name, got, "float32 with int64 labels; from_arrays converts")
            if points.dim() != 2 or points.shape[1:] != self.train.shape[1:] or not len(points):
                raise ShapeError(name, f"shape {tuple(points.shape)}", "(n, d), as in train")
            if labels.shape != points.shape[:1]:
                raise ShapeError(f"{name}_labels", f"shape {tuple(labels.shape)}", "one a latent")
        if not self.class_names:
            names = tuple(str(label) for label in range(int(self.train_labels.max()) + 1))
            object.__setattr__(self, "class_names", names)
        for name, (_, labels) in parts.items():
            low, high = (int(end) for end in labels.aminmax())
            if low < 0 or high >= self.classes:
                raise OptionError(f"{name}_labels", f"{low}…{high}", f"0…{self.classes - 1}")
            for k, count in enumerate(torch.bincount(labels, minlength=self.classes).tolist()):
                if count == 0:
                    got = f"no latent of class {self.class_names[k]!r}"
                    raise OptionError(f"{name}_labels", got, "one of every class at least")

    @classmethod
    def from_arrays(
        cls,
        z: Tensor | np.ndarray,
        labels: Any = None,
        *,
        test: Tensor | np.ndarray | None = None,
        test_labels: Any = None,
        test_fraction: float = 0.1,
        class_names: Sequence[str] | None = None,
        seed: int = 0,
        encode: Map | None = None,
        decode: Map | None = None,
        image_shape: tuple[int, ...] | None = None,
    ) -> Latents:
        """Latents from arrays or tensors; every class has at least one latent in both parts.

        Args:
            z: Latents ``(n, d)``, floating point. What is float32 already, and may be written to,
                is not copied unless it is split: an array mapped with ``mmap_mode="c"`` stays on
                disk.
            labels: One integer or string a latent, ``(n,)``; classes are numbered in their sorted
                order. Without labels there is one class, ``"all"``.
            test: Held-out latents ``(m, d)``; by default a share of each class of ``z``.
            test_labels: Their labels, ``(m,)``, of the same classes.
            test_fraction: That share, where ``test`` is not given; of a class of four or more two
                latents at least, since one alone judges nothing.
            class_names: The classes in the order to number them: string labels are among them,
                and an integer label is a place in them.
            seed: Decides the split, and only that.
            encode: Images to latents, where that is known.
            decode: Latents to images.
            image_shape: Shape of one image.

        Raises:
            DtypeError: Latents are not floating point, or labels neither integers nor strings.
            ShapeError: Not ``(n, d)``, not one label a latent, or dimensions that disagree.
            NonFiniteError: NaN or infinite coordinates.
            OptionError: Classes that are unknown, empty, or too small to be split.

        Example:
            >>> z = np.random.default_rng(0).normal(size=(20, 4))
            >>> latents = Latents.from_arrays(z, ["cat", "dog"] * 10, test_fraction=0.3)
            >>> latents.class_names, latents.train.shape, latents.test_labels.tolist()
            (('cat', 'dog'), torch.Size([14, 4]), [...])
        """
        if test is None and test_labels is not None:
            raise OptionError("test_labels", "labels without latents", "test as well")
        if labels is not None and test is not None and test_labels is None:
            raise OptionError("test_labels", None, "the labels of test, as labels are given")
        if not 0 < test_fraction < 1:
            raise ArgumentError("test_fraction", test_fraction, "a share between 0 and 1")
        points = as_points("z", z)
        values = as_labels("labels", _or_all(labels, points), points)
        names: list = np.unique(values).tolist() if class_names is None else list(class_names)
        if len(set(names)) < len(names):
            raise OptionError("class_names", names, "a name once")
        known = names if values.dtype.kind == "U" else list(range(len(names)))
        known = names if class_names is None else known
        codes = _codes("labels", values, known).to(points.device)
        if test is None:
            first, last = _split(codes, names, test_fraction, seed)
            parts = points[first], codes[first], points[last], codes[last]
        else:
            held = as_points("test", test, points)
            values = as_labels("test_labels", _or_all(test_labels, held), held)
            parts = points, codes, held, _codes("test_labels", values, known).to(held.device)
        return cls(*parts, encode, decode, image_shape, tuple(map(str, names)))

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Latents:
        """Latents from a file or a folder; an ``.npy`` is mapped, and only its parts are copied.

        - An ``.npz`` with the arrays ``latents`` and ``labels``; any other ``.npz`` holds one
          array a class, under its name.
        - An ``.npy`` of latents, with labels in ``<stem>_labels.npy`` beside it or without.
        - A folder with ``train.npz`` and ``test.npz``, either as above.
        - A folder with ``latents.npy`` and ``labels.npy``.
        - A folder with ``latents.npy``, ``gender.npy`` and ``age.npy``, as `load_alae` reads it.

        Args:
            path: The file or the folder.
            **options: Of `from_arrays`: ``test_fraction`` and ``seed`` where the files name no
                held-out part, ``class_names``, ``encode``, ``decode``, ``image_shape``.

        Raises:
            ArgumentError: As `from_arrays`, with the file and the key.
            RunError: A file is damaged.

        Example:
            >>> import tempfile
            >>> path = Path(tempfile.mkdtemp()) / "pets.npz"
            >>> np.savez(path, cat=np.ones((5, 3)), dog=np.zeros((5, 3)))
            >>> Latents.load(path).class_names
            ('cat', 'dog')
        """
        with naming(path):
            return cls.from_arrays(**read_parts(path)._asdict(), **options)

    @property
    def dim(self) -> int:
        """Dimension d of the latent space."""
        return self.train.shape[-1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def members(self) -> tuple[Tensor, ...]:
        """Places of the training latents of every class, ``(n_c,)`` each."""
        sizes = torch.bincount(self.train_labels, minlength=self.classes).tolist()
        return torch.argsort(self.train_labels, stable=True).split(sizes)

    def of_class(self, label: int, *, test: bool = False) -> Tensor:
        """All latents of one class, ``(n_c, d)``.

        Args:
            label: The class.
            test: Take the held-out part.

        Raises:
            ArgumentError: There is no such class.

        Example:
            >>> latents = Latents.from_arrays(torch.randn(20, 3), [0, 1] * 10, test_fraction=0.5)
            >>> latents.of_class(1, test=True).shape
            torch.Size([5, 3])
        """
        if not 0 <= label < self.classes:
            raise ArgumentError("label", label, f"a class in 0…{self.classes - 1}")
        points, labels = (self.test, self.test_labels) if test else (self.train, self.train_labels)
        return points[labels == label]

    def draw(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws training latents, the same number from every class, with replacement.

        Args:
            per_class: How many of each class.
            generator: The only source of randomness; it may live on another device.

        Returns:
            Latents ``(classes·per_class, d)`` and their labels, class after class.

        Example:
            >>> latents = Latents.from_arrays(torch.randn(20, 3), [0, 1] * 10)
            >>> latents.draw(2, torch.Generator())[1].tolist()
            [0, 0, 1, 1]
        """
        picks = []
        for members in self.members:
            index = torch.randint(
                len(members), (per_class,), generator=generator, device=generator.device
            )
            picks.append(members[index.to(members.device)])
        chosen = torch.cat(picks)
        return self.train[chosen], self.train_labels[chosen]


def _or_all(labels: Any, points: Tensor) -> Any:
    return np.full(len(points), "all") if labels is None else labels


def _codes(name: str, values: np.ndarray, known: list) -> Tensor:
    """The place of each label among the known ones, each of which must come up."""
    found, inverse = np.unique(values, return_inverse=True)
    place = {value: k for k, value in enumerate(known)}
    for label in found.tolist():
        if label not in place:
            raise OptionError(name, f"the label {label!r}", f"classes among {known}")
    missing = sorted(place.keys() - set(found.tolist()))
    if missing:
        raise OptionError(name, f"no latent of class {missing[0]!r}", "one of every class at least")
    return torch.tensor([place[label] for label in found.tolist()])[torch.from_numpy(inverse)]


def _split(codes: Tensor, names: list, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places of the training and the held-out latents, each class cut at the same share."""
    generator = torch.Generator().manual_seed(seed)
    first, last = [], []
    members = torch.argsort(codes.cpu(), stable=True).split(torch.bincount(codes).tolist())
    for name, index in zip(names, members, strict=True):
        if len(index) < 2:
            raise OptionError("labels", f"one latent of class {name!r}", "two to split, or test")
        mixed = index[torch.randperm(len(index), generator=generator)]
        held = min(max(round(share * len(index)), min(2, len(index) // 2)), len(index) - 1)
        first.append(mixed[held:])
        last.append(mixed[:held])
    train, test = (torch.cat(part).sort().values.to(codes.device) for part in (first, last))
    return train, test
