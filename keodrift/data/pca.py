"""Principal components of images: the latent space that needs no training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from keodrift.data.images import Images, to_unit
from keodrift.data.latents import Latents
from keodrift.errors import ArgumentError, MissingDependencyError, ShapeError

FLAT = 1e-12  # variance relative to the largest, up to which there is none but rounding


def pca_latents(images: Images, dim: int, *, whiten: bool = False) -> Latents:
    """Images as their principal components, with the maps there and back.

    The components are those of the training part alone.

    Args:
        images: The images; their latents keep labels, order and parts.
        dim: Latent dimension, at most the number of pixels and of training images.
        whiten: Give every latent coordinate unit variance. Otherwise one factor is applied to
            all of them, so that the mean variance of a coordinate is 1 and distances keep the
            proportions of pixel space.

    Raises:
        ArgumentError: ``dim`` is out of range, or directions without variance are to be whitened.
        MissingDependencyError: scikit-learn is not installed.

    Example:
        >>> from keodrift.data import load_digit_images
        >>> latents = pca_latents(load_digit_images(), 10)
        >>> latents.decode(latents.test[:3]).shape
        torch.Size([3, 8, 8])
    """
    grey = (images.train.numpy() / 255, images.test.numpy() / 255)
    labels = (images.train_labels, images.test_labels)
    return principal(grey, labels, images.class_names, dim, whiten)


def principal(
    grey: tuple[np.ndarray, np.ndarray],
    labels: tuple[Tensor, Tensor],
    class_names: tuple[str, ...],
    dim: int,
    whiten: bool,
) -> Latents:
    """`pca_latents` of training and held-out images ``(n, H, W)`` in [0, 1], float64."""
    shape = grey[0].shape[1:]
    most = min(len(grey[0]), shape[0] * shape[1])
    if not 1 <= dim <= most:
        raise ArgumentError("dim", dim, f"a dimension in 1…{most}, the number of pixels or images")
    try:
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "a latent space by PCA", "data") from error
    pca = PCA(n_components=dim, svd_solver="full").fit(grey[0].reshape(len(grey[0]), -1))
    mean = torch.as_tensor(pca.mean_, dtype=torch.float32)
    varied = int((pca.explained_variance_ > FLAT * pca.explained_variance_[0]).sum())
    if whiten and dim > varied:
        raise ArgumentError("dim", dim, f"at most {varied}, in whose directions images differ")
    axes = torch.as_tensor(pca.components_, dtype=torch.float32)
    variance = torch.as_tensor(pca.explained_variance_, dtype=torch.float32)
    scale = variance.sqrt() if whiten else variance.mean().sqrt()

    def encode(images: Tensor) -> Tensor:
        if images.shape[-2:] != shape:
            needs = f"a shape (…, {shape[0]}, {shape[1]})"
            raise ShapeError("images", tuple(images.shape), needs)
        return (to_unit(images).flatten(-2) - mean) @ axes.T / scale

    def decode(latents: Tensor) -> Tensor:
        if latents.shape[-1] != dim:
            raise ShapeError("latents", tuple(latents.shape), f"a shape (…, {dim})")
        images = (latents * scale) @ axes + mean
        return images.clamp(0, 1).unflatten(-1, shape)

    train, test = (encode(torch.as_tensor(part, dtype=torch.float32)) for part in grey)
    return Latents(train, labels[0], test, labels[1], encode, decode, shape, class_names)
