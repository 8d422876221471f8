"""A small convolutional classifier: what a generated image shows, in the eyes of a judge."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keodrift.checks import check_positive
from keodrift.data import to_unit
from keodrift.drifts.draws import seeded
from keodrift.errors import ShapeError
from keodrift.vision.fitting import Fittable
from keodrift.vision.pixels import Sides, check_images, check_sides

SHIFT = 14  # images move by this part of their shorter side, either way
BATCH = 1024  # images judged at once; bounds memory, not the result


class ImageClassifier(Fittable):
    """Grey images to classes, three convolutions.

    It learns from images that are shifted by up to a fourteenth of a side and blurred at random,
    since decoded images are softer than those it is given.

    Args:
        image_shape: Height and width, multiples of 4.
        classes: Number of classes.
        channels: Channels of the first convolution; the others have two and four times as many.
        seed: Decides the initial weights.

    Raises:
        OptionError: A size is not a positive integer.
        ShapeError: A side of the image is no multiple of 4.

    Example:
        >>> ImageClassifier((8, 8), classes=3)(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        image_shape: Sides = (28, 28),
        classes: int = 10,
        channels: int = 12,
        seed: int = 0,
    ) -> None:
        sides = check_sides(image_shape)
        sizes = {"classes": classes, "channels": channels}
        for name, size in sizes.items():
            check_positive(name, size, integer=True)
        super().__init__()
        self.settings = {"image_shape": sides, **sizes, "seed": seed}
        self.image_shape = sides
        flat = 4 * channels * (sides[0] // 4) * (sides[1] // 4)
        with seeded(seed):
            self.layers = nn.Sequential(
                *(*_convolution(1, channels), nn.MaxPool2d(2)),
                *(*_convolution(channels, 2 * channels), nn.MaxPool2d(2)),
                *(*_convolution(2 * channels, 4 * channels), nn.Flatten()),
                *(nn.Linear(flat, 128), nn.ReLU(), nn.Linear(128, classes)),
            )
        self.float()

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(…, H, W)`` in [0, 1] to one logit a class, ``(…, classes)``.

        Raises:
            ShapeError: The images have another height or width.
        """
        check_images(images, self.image_shape)
        logits = self.layers(images.reshape(-1, 1, *self.image_shape))
        return logits.reshape(*images.shape[:-2], logits.shape[-1])

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Cross-entropy of classes ``(n,)`` after a random shift and blur of images."""
        images = _blurred(_shifted(images, generator), generator)
        return nn.functional.cross_entropy(self(images), labels)


def _convolution(fan_in: int, fan_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out), nn.ReLU()


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    n, height, width = images.shape
    reach = min(height, width) // SHIFT
    padded = nn.functional.pad(images, (reach,) * 4)
    moved = torch.randint(2 * reach + 1, (2, n, 1), generator=generator, device=generator.device)
    down, right = moved.to(images.device)
    own, rows, columns = (torch.arange(k, device=images.device) for k in (n, height, width))
    rows, columns = down + rows, right + columns
    return padded[own[:, None, None], rows[:, :, None], columns[:, None, :]]


def _blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    smooth = nn.functional.avg_pool2d(images.unsqueeze(1), 3, 1, 1).squeeze(1)
    shape = len(images), 1, 1
    share = torch.rand(shape, generator=generator, device=generator.device, dtype=images.dtype)
    return images.lerp(smooth, share.to(images.device))


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that a classifier puts into their class.

    Args:
        classifier: Images ``(n, H, W)`` to logits; judges as it is, so in evaluation mode.
        images: In [0, 1], or uint8 in 0…255, ``(n, H, W)``.
        labels: Their classes, ``(n,)``.

    Returns:
        A number in 0…1.

    Raises:
        ShapeError: There is not one label an image, or there is no image.

    Example:
        >>> classifier = ImageClassifier((8, 8), classes=1).eval()
        >>> accuracy(classifier, torch.rand(5, 8, 8), torch.zeros(5, dtype=torch.int64))
        1.0
    """
    if not len(images) or labels.shape != images.shape[:1]:
        got = f"{tuple(labels.shape)} for images {tuple(images.shape)}"
        raise ShapeError("labels", got, "one label an image, and one image at least")
    read = class_probabilities(classifier, images).argmax(-1)
    return int((read == labels).sum()) / len(images)


@torch.no_grad()
def class_probabilities(classifier: nn.Module, images: Tensor) -> Tensor:
    """How sure a classifier is of every class, ``(n, classes)``: softmax of its logits, in batches.

    Args:
        classifier: Images ``(n, H, W)`` to logits; judges as it is, so in evaluation mode.
        images: In [0, 1], or uint8 in 0…255, ``(n, H, W)``.

    Example:
        >>> classifier = ImageClassifier((8, 8), classes=2).eval()
        >>> class_probabilities(classifier, torch.rand(5, 8, 8)).sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """
    return torch.cat([classifier(to_unit(part)).softmax(-1) for part in images.split(BATCH)])
