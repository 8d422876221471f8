"""Real images small enough for any machine: scikit-learn's 8×8 digits in a PCA latent space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from keodrift.errors import ArgumentError, MissingDependencyError, ShapeError


@dataclass(frozen=True)
class Latents:
    """Labelled latent vectors, split in two, with the maps to and from images.

    Attributes:
        train: Latents to learn from, ``(n, d)`` float32.
        train_labels: Their classes, ``(n,)`` int64 in 0…classes−1.
        test: Held-out latents, ``(m, d)``.
        test_labels: Their classes, ``(m,)``.
        encode: Images ``(…, *image_shape)`` in [0, 1] to latents ``(…, d)``.
        decode: Latents ``(…, d)`` to images ``(…, *image_shape)``, clipped to [0, 1].
        image_shape: Shape of one image.
        class_names: One name a class.

    Example:
        >>> latents = load_digits_latents(dim=10)
        >>> latents.decode(latents.test[:3]).shape
        torch.Size([3, 8, 8])
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]

    @property
    def dim(self) -> int:
        """Dimension d of the latent space."""
        return self.train.shape[-1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def of_class(self, label: int, *, test: bool = False) -> Tensor:
        """All latents of one class, ``(n_c, d)``.

        Args:
            label: The class.
            test: Take the held-out part.

        Raises:
            ArgumentError: There is no such class.

        Example:
            >>> load_digits_latents(dim=10).of_class(3).shape[1]
            10
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
            >>> z, labels = load_digits_latents(dim=10).draw(4, torch.Generator())
            >>> z.shape, labels[:5].tolist()
            (torch.Size([40, 10]), [0, 0, 0, 0, 1])
        """
        picks = []
        for label in range(self.classes):
            members = torch.nonzero(self.train_labels == label).squeeze(-1)
            index = torch.randint(
                len(members), (per_class,), generator=generator, device=generator.device
            )
            picks.append(members[index.to(members.device)])
        chosen = torch.cat(picks)
        return self.train[chosen], self.train_labels[chosen]


def load_digits_latents(
    dim: int = 20, *, whiten: bool = False, test_fraction: float = 0.25, seed: int = 0
) -> Latents:
    """The 1 797 handwritten 8×8 digits of scikit-learn as PCA latents.

    The PCA is fitted on the training part only. Nothing is downloaded.

    Args:
        dim: Latent dimension, 1…64. 20 keeps 89 % of the variance and 30 keeps 96 %.
        whiten: Give every latent coordinate unit variance. Otherwise one factor is applied to
            all of them, so that the mean variance of a coordinate is 1 and distances keep the
            proportions of pixel space.
        test_fraction: Held-out share, the same for every class.
        seed: Decides the split, and only that.

    Returns:
        The latents with their maps.

    Raises:
        ArgumentError: ``dim`` or ``test_fraction`` is out of range.
        MissingDependencyError: scikit-learn is not installed.

    Example:
        >>> latents = load_digits_latents(dim=20)
        >>> latents.train.shape, latents.classes
        (torch.Size([1347, 20]), 10)
    """
    if not 1 <= dim <= 64:
        raise ArgumentError("dim", dim, "a dimension in 1…64, the number of pixels")
    if not 0 < test_fraction < 1:
        raise ArgumentError("test_fraction", test_fraction, "a share between 0 and 1")
    try:
        from sklearn.datasets import load_digits
        from sklearn.decomposition import PCA
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "load_digits_latents", "data") from error

    pixels, classes = load_digits(return_X_y=True)
    pixels = pixels / 16.0
    train, test, train_labels, test_labels = train_test_split(
        pixels, classes, test_size=test_fraction, random_state=seed, stratify=classes
    )
    pca = PCA(n_components=dim, svd_solver="full").fit(train)
    mean = torch.as_tensor(pca.mean_, dtype=torch.float32)
    axes = torch.as_tensor(pca.components_, dtype=torch.float32)
    variance = torch.as_tensor(pca.explained_variance_, dtype=torch.float32)
    scale = variance.sqrt() if whiten else variance.mean().sqrt()

    def encode(images: Tensor) -> Tensor:
        if images.shape[-2:] != (8, 8):
            raise ShapeError("images", tuple(images.shape), "a shape (…, 8, 8)")
        return (images.flatten(-2) - mean) @ axes.T / scale

    def decode(latents: Tensor) -> Tensor:
        if latents.shape[-1] != dim:
            raise ShapeError("latents", tuple(latents.shape), f"a shape (…, {dim})")
        images = (latents * scale) @ axes + mean
        return images.clamp(0, 1).unflatten(-1, (8, 8))

    def tensors(values: object) -> Tensor:
        return encode(torch.as_tensor(values, dtype=torch.float32).unflatten(-1, (8, 8)))

    return Latents(
        train=tensors(train),
        train_labels=torch.as_tensor(train_labels, dtype=torch.int64),
        test=tensors(test),
        test_labels=torch.as_tensor(test_labels, dtype=torch.int64),
        encode=encode,
        decode=decode,
        image_shape=(8, 8),
        class_names=tuple(str(digit) for digit in range(10)),
    )
