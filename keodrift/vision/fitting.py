"""One training loop for the networks that learn from images once and are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from keodrift.checks import check_positive
from keodrift.data import to_unit
from keodrift.errors import DivergedError, DtypeError, ShapeError

BATCH = 128
PEAK = 3e-3  # of the learning rate
WEIGHT_DECAY = 1e-2


class Fittable(nn.Module):
    """A network of images that says what to make small, and how to build one alike.

    Attributes:
        settings: Its constructor's arguments, by name; JSON takes them.
    """

    settings: dict[str, Any]

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Its loss on images ``(n, H, W)`` in [0, 1] of classes ``(n,)``."""
        raise NotImplementedError


@torch.enable_grad()
def fit(
    network: Fittable,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Trains a network in place and leaves it frozen in evaluation mode.

    AdamW with a one-cycle learning rate. The same seed gives the same weights on one machine.

    Args:
        network: What is trained.
        images: uint8, or floats in [0, 1], ``(n, H, W)``.
        labels: Their classes, ``(n,)`` int64.
        epochs: Passes through the images; each leaves out what does not fill a batch.
        seed: Decides order, noise and augmentation; the network has its own for its weights.
        progress: Show a progress bar on standard error.

    Raises:
        OptionError: ``epochs`` is not a positive integer.
        ShapeError: There are no two images, or not one label an image.
        DtypeError: The images are integers other than uint8, or the labels not int64.
        DivergedError: The loss is not finite.

    Example:
        >>> from keodrift.vision import ImageClassifier, accuracy
        >>> bright = torch.arange(128) % 2
        >>> images = bright.view(-1, 1, 1).expand(-1, 8, 8).float()
        >>> classifier = ImageClassifier((8, 8), classes=2, channels=4)
        >>> fit(classifier, images, bright, epochs=30, progress=False)
        >>> accuracy(classifier, images, bright)
        1.0
    """
    check_positive("epochs", epochs, integer=True)
    if len(images) < 2 or labels.shape != images.shape[:1]:
        got = f"{tuple(labels.shape)} for images {tuple(images.shape)}"
        raise ShapeError("labels", got, "one label an image, and two images at least")
    if labels.dtype != torch.int64:
        raise DtypeError("labels", labels.dtype, "int64")
    to_unit(images[:1])
    size = min(BATCH, len(images))
    count = len(images) // size
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=epochs * count)
    network.requires_grad_(True).train()
    with tqdm(total=epochs * count, desc=type(network).__name__, disable=not progress) as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(images), generator=generator).split(size)[:count]:
                some, classes = images[chosen.to(images.device)], labels[chosen.to(labels.device)]
                loss = network.loss(to_unit(some), classes, generator)
                if not torch.isfinite(loss):
                    raise DivergedError("the loss is NaN or infinite", bar.n)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    network.requires_grad_(False).eval()
