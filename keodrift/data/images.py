"""Labelled images in grey, and MNIST from wherever it is at hand."""

from __future__ import annotations

import gzip
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keodrift.data.layouts import naming, read_npz
from keodrift.errors import DtypeError, MissingDependencyError, OptionError, RunError, ShapeError
from keodrift.files import reading


@dataclass(frozen=True)
class Images:
    """Labelled images in grey, split in two.

    Attributes:
        train: Images to learn from, ``(n, H, W)`` uint8, 0 black to 255 white.
        train_labels: Their classes, ``(n,)`` int64 in 0…classes−1.
        test: Held-out images, ``(m, H, W)``.
        test_labels: Their classes, ``(m,)``.
        class_names: One name a class.

    Raises:
        DtypeError: Images are not uint8, or labels not int64.
        ShapeError: Shapes that disagree.
        OptionError: A label without a name.

    Example:
        >>> grey, labels = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1])
        >>> Images(grey, labels, grey, labels, ("cat", "dog")).image_shape
        (8, 8)
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, images, labels in (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            if images.dtype != torch.uint8 or labels.dtype != torch.int64:
                raise DtypeError(name, f"{images.dtype}, {labels.dtype}", "uint8 and int64 labels")
            if images.dim() != 3 or images.shape[1:] != self.train.shape[1:] or not len(images):
                raise ShapeError(name, f"shape {tuple(images.shape)}", "(n, H, W) as in train")
            if labels.shape != images.shape[:1]:
                raise ShapeError(f"{name}_labels", f"shape {tuple(labels.shape)}", "one an image")
            low, high = (int(end) for end in labels.aminmax())
            if low < 0 or high >= len(self.class_names):
                needs = f"classes in 0…{len(self.class_names) - 1}"
                raise OptionError(f"{name}_labels", f"{low}…{high}", needs)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.train.shape[1], self.train.shape[2]

    def digest(self) -> str:
        """SHA-256 of all images and labels, whatever file they came in, in hexadecimal."""
        total = hashlib.sha256()
        for part in (self.train, self.train_labels, self.test, self.test_labels):
            total.update(part.cpu().numpy().tobytes())
        return total.hexdigest()


def to_unit(images: Tensor) -> Tensor:
    """Pixels in [0, 1]: bytes divided by 255, and floats as they are.

    Raises:
        DtypeError: They are neither.

    Example:
        >>> to_unit(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
    """
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    if not images.is_floating_point():
        raise DtypeError("images", images.dtype, "uint8 in 0…255, or floats in [0, 1]")
    return images


def load_mnist(source: str | Path | None = None, *, sha256: str | None = None) -> Images:
    """The 70 000 handwritten 28×28 digits of MNIST, the first 60 000 to train on.

    Args:
        source: None downloads them from OpenML with scikit-learn, which keeps them in its cache.
            A folder holds the four IDX files ``train-images-idx3-ubyte``,
            ``train-labels-idx1-ubyte``, ``t10k-…``, or their ``.gz``. An ``.npz`` holds ``images``
            ``(n, 28, 28)`` uint8, ``labels`` ``(n,)``, and perhaps ``split`` ``(n,)``, 0 to train
            and 1 to test; otherwise its first six sevenths are to train on.
        sha256: What `Images.digest` is to be, the same for every kind of source.

    Raises:
        ArgumentError: Something is missing or of the wrong shape, and which file; or the digest is
            another.
        MissingDependencyError: A download without scikit-learn.
        RunError: The download failed, or a file is damaged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "digits.npz"
        >>> np.savez(path, images=np.zeros((7, 28, 28), np.uint8), labels=np.arange(7))
        >>> load_mnist(path).train.shape
        torch.Size([6, 28, 28])
    """
    if source is None:
        images = _split(*_downloaded())
    else:
        with naming(source):
            images = _stored(Path(source))
    if sha256 is not None and images.digest() != sha256.lower():
        raise OptionError("source", f"data of SHA-256 {images.digest()}", f"those of {sha256}")
    return images


def _downloaded() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import fetch_openml
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "a download of MNIST", "data") from error
    try:
        data, target = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
    except OSError as error:
        needs = "connect, or pass the source, a file or a folder"
        raise RunError(f"cannot download MNIST ({error}): {needs}.") from error
    return data.reshape(-1, 28, 28).astype(np.uint8), target.astype(np.int64)


def _stored(path: Path) -> Images:
    if path.is_dir():
        return _images(*(_idx(path, part, axes) for part in ("train", "t10k") for axes in (3, 1)))
    if not path.is_file() or path.suffix != ".npz":
        got = "another kind of file" if path.exists() else "no such file or folder"
        raise OptionError("source", got, "an .npz or a folder of IDX files")
    arrays = read_npz(path)
    for key in ("images", "labels"):
        if key not in arrays:
            raise OptionError(key, f"only {sorted(arrays)}", "an array of that name")
    return _split(arrays["images"], arrays["labels"], arrays.get("split"))


def _idx(folder: Path, part: str, axes: int) -> np.ndarray:
    """An IDX file: a magic number, the axes as big-endian integers, then bytes."""
    name = f"{part}-{'images' if axes == 3 else 'labels'}-idx{axes}-ubyte"
    path = folder / name
    path = path if path.is_file() else folder / f"{name}.gz"
    if not path.is_file():
        raise OptionError(name, "no such file", "it, or it with .gz, in the folder")
    with reading(path):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = (int(number) for number in np.frombuffer(raw, ">i4", 1 + axes))
    if magic != 0x800 + axes:
        raise OptionError(path.name, f"the magic number {magic}", f"{0x800 + axes}")
    held = len(raw) - 4 * (1 + axes)
    if held != math.prod(shape):
        raise ShapeError(path.name, f"{held} bytes", f"{math.prod(shape)} for the shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=4 * (1 + axes)).reshape(shape)


def _split(images: np.ndarray, labels: np.ndarray, split: np.ndarray | None = None) -> Images:
    """Training and held-out images as the split says, else the first six sevenths and the rest."""
    if split is None:
        split = np.arange(len(images)) >= 6 * len(images) // 7
    for name, column in (("labels", labels), ("split", split)):
        if column.shape != images.shape[:1]:
            raise ShapeError(name, f"shape {column.shape}", f"one an image, {images.shape[:1]}")
    if not np.isin(split, (0, 1)).all():
        raise OptionError("split", f"values {np.unique(split)[:5]}", "0 to train, 1 to test")
    train, test = split == 0, split == 1
    return _images(images[train], labels[train], images[test], labels[test])


def _images(*parts: np.ndarray) -> Images:
    halves = []
    for images, labels in (parts[:2], parts[2:]):
        if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
            raise ShapeError("images", f"{images.dtype} {images.shape}", "uint8 (n, 28, 28)")
        if labels.dtype.kind not in "iu":
            raise DtypeError("labels", labels.dtype, "integers")
        halves.append((torch.tensor(images), torch.tensor(labels.astype(np.int64))))
    return Images(*halves[0], *halves[1], tuple("0123456789"))
