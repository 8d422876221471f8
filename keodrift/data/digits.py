"""Real images small enough for any machine: scikit-learn's 8×8 digits, and their latents."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from keodrift.data.images import Images
from keodrift.data.latents import Latents
from keodrift.data.pca import principal
from keodrift.errors import ArgumentError, MissingDependencyError

NAMES = tuple("0123456789")


def load_digit_images(*, test_fraction: float = 0.25, seed: int = 0) -> Images:
    """The 1 797 handwritten 8×8 digits of scikit-learn, their 17 greys spread over 0…255.

    Nothing is downloaded.

    Args:
        test_fraction: Held-out share, the same for every class.
        seed: Decides the split, and only that; it is the split of `load_digits_latents`.

    Raises:
        ArgumentError: ``test_fraction`` is out of range.
        MissingDependencyError: scikit-learn is not installed.

    Example:
        >>> load_digit_images().train.shape
        torch.Size([1347, 8, 8])
    """
    parts, labels = _digits(test_fraction, seed)
    train, test = (torch.from_numpy(np.rint(part * 255).astype(np.uint8)) for part in parts)
    return Images(train, labels[0], test, labels[1], NAMES)


def load_digits_latents(
    dim: int = 20, *, whiten: bool = False, test_fraction: float = 0.25, seed: int = 0
) -> Latents:
    """The digits of `load_digit_images`, at their exact greys, as PCA latents.

    Args:
        dim: Latent dimension, 1…64. 20 keeps 89 % of the variance and 30 keeps 96 %.
        whiten: As for `pca_latents`.
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
    return principal(*_digits(test_fraction, seed), NAMES, dim, whiten)


def _digits(
    test_fraction: float, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[Tensor, Tensor]]:
    if not 0 < test_fraction < 1:
        raise ArgumentError("test_fraction", test_fraction, "a share between 0 and 1")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "the 8×8 digits", "data") from error
    data = load_digits()
    train, test, first, last = train_test_split(
        data.images / 16,
        data.target,
        test_size=test_fraction,
        random_state=seed,
        stratify=data.target,
    )
    return (train, test), (torch.as_tensor(first).long(), torch.as_tensor(last).long())
