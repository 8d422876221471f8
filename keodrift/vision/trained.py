"""The autoencoder and the classifier of some images, trained once and kept."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from keodrift.data import Images, Latents, to_unit
from keodrift.vision.autoencoder import ConvAutoencoder
from keodrift.vision.cached import Cache, cached, digest
from keodrift.vision.classifier import ImageClassifier
from keodrift.vision.fitting import Fittable, fit

# Raised by whoever changes what the same settings and images give.
VERSION = 1


def image_latents(images: Images, dim: int = 6, *, cache: Cache = None, **options: Any) -> Latents:
    """Images as latents of an autoencoder that is trained on them, or was before.

    Args:
        images: The images, with sides that are multiples of 4.
        dim: Latent dimension.
        cache: See `cache_folder`.
        **options: Of `image_autoencoder`.

    Returns:
        The latents with their maps, decode differentiable.

    Raises:
        ArgumentError: As `image_autoencoder`.
        RunError: The cache cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> pixels = (torch.arange(20 * 64).view(20, 8, 8) % 256).to(torch.uint8)
        >>> labels = torch.arange(20) % 2
        >>> images = Images(pixels, labels, pixels[:4], labels[:4], ("even", "odd"))
        >>> with TemporaryDirectory() as folder:
        ...     latents = image_latents(images, 3, epochs=1, cache=folder, progress=False)
        >>> latents.test.shape, latents.decode(latents.test).shape
        (torch.Size([4, 3]), torch.Size([4, 8, 8]))
    """
    return latents_of(images, image_autoencoder(images, dim, cache=cache, **options), cache=cache)


def image_autoencoder(
    images: Images,
    dim: int = 6,
    *,
    class_weight: float = 0.03,
    epochs: int = 24,
    cache: Cache = None,
    seed: int = 0,
    progress: bool = True,
) -> ConvAutoencoder:
    """An autoencoder of images, frozen, that is trained on them, or was before.

    Args:
        images: The images, with sides that are multiples of 4.
        dim: Latent dimension.
        class_weight: How much it looks at classes, see `ConvAutoencoder`; 0 trains it without
            labels.
        epochs: Passes through the training images.
        cache: See `cache_folder`.
        seed: Decides initial weights, order and noise.
        progress: Show a progress bar on standard error.

    Raises:
        OptionError: ``dim`` or ``epochs`` is not a positive integer, or the weight negative.
        ShapeError: The images cannot be halved twice.
        RunError: The cache cannot be written.
        DivergedError: The training left the finite numbers; nothing is kept.
    """
    autoencoder = ConvAutoencoder(
        images.image_shape, dim, len(images.class_names), class_weight=class_weight, seed=seed
    )
    _fit_cached(autoencoder, images, epochs, cache, seed, progress)
    return autoencoder


def image_classifier(
    images: Images,
    *,
    epochs: int = 6,
    cache: Cache = None,
    seed: int = 0,
    progress: bool = True,
) -> ImageClassifier:
    """A classifier of images, frozen, that is trained on them, or was before.

    Args:
        images: The images, with sides that are multiples of 4.
        epochs: Passes through the training images.
        cache: See `cache_folder`.
        seed: Decides initial weights, order and augmentation.
        progress: Show a progress bar on standard error.

    Raises:
        OptionError: ``epochs`` is not a positive integer.
        ShapeError: The images cannot be halved twice.
        RunError: The cache cannot be written.
        DivergedError: The training left the finite numbers; nothing is kept.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> pixels = (torch.arange(20 * 64).view(20, 8, 8) % 256).to(torch.uint8)
        >>> labels = torch.arange(20) % 2
        >>> images = Images(pixels, labels, pixels[:4], labels[:4], ("even", "odd"))
        >>> with TemporaryDirectory() as folder:
        ...     classifier = image_classifier(images, epochs=1, cache=folder, progress=False)
        >>> classifier(torch.rand(3, 8, 8)).shape
        torch.Size([3, 2])
    """
    classifier = ImageClassifier(images.image_shape, len(images.class_names), seed=seed)
    _fit_cached(classifier, images, epochs, cache, seed, progress)
    return classifier


@torch.no_grad()
def latents_of(images: Images, autoencoder: ConvAutoencoder, *, cache: Cache = None) -> Latents:
    """Images as latents, encoded once and kept.

    Args:
        images: The images.
        autoencoder: Encodes and decodes; a frozen copy of it goes into the latents.
        cache: See `cache_folder`.

    Raises:
        ShapeError: The autoencoder was made for images of other sides.
        RunError: The cache cannot be written.
    """
    frozen = copy.deepcopy(autoencoder).requires_grad_(False).eval()
    parts = {"train": images.train, "test": images.test}

    def encode() -> dict[str, Tensor]:
        return {
            name: torch.cat([frozen.encode(to_unit(batch)) for batch in part.split(1024)])
            for name, part in parts.items()
        }

    key = digest(parts | frozen.state_dict(), VERSION)
    kept = cached("latents", key, cache, encode)
    return Latents(
        train=kept["train"],
        train_labels=images.train_labels,
        test=kept["test"],
        test_labels=images.test_labels,
        encode=frozen.encode,
        decode=frozen.decode,
        image_shape=frozen.image_shape,
        class_names=images.class_names,
    )


def _fit_cached(
    network: Fittable, images: Images, epochs: int, cache: Cache, seed: int, progress: bool
) -> None:
    """Gives a fresh network the weights that fitting it gives, and freezes it."""
    data = {"images": images.train, "labels": images.train_labels}
    name = type(network).__name__

    def weights() -> dict[str, Tensor]:
        fit(network, images.train, images.train_labels, epochs=epochs, seed=seed, progress=progress)
        return network.state_dict()

    key = digest(data, [VERSION, name, network.settings, epochs, seed])
    network.load_state_dict(cached(name, key, cache, weights))
    network.requires_grad_(False).eval()
