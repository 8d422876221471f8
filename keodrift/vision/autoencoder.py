"""A small convolutional autoencoder: grey images to a few numbers and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from keodrift.checks import check_positive
from keodrift.drifts.draws import seeded
from keodrift.errors import OptionError, ShapeError
from keodrift.vision.fitting import Fittable
from keodrift.vision.pixels import Sides, check_images, check_sides


class ConvAutoencoder(Fittable):
    """Grey images to latents and back, two convolutions each way.

    Every latent coordinate has mean 0 and variance 1 over the training images (a batch
    normalisation without parameters). The decoder learns from latents with a little noise on them,
    so that close latents look alike. With ``class_weight`` a linear map guesses the class from the
    latents: a few coordinates then keep what tells classes apart, which pixels alone pay little
    for.

    Args:
        image_shape: Height and width, multiples of 4.
        dim: Latent dimension d.
        classes: Number of classes.
        channels: Channels of the first convolution; the second has twice as many.
        width: Width of the hidden linear layer.
        noise: Standard deviation of the noise on latents during training.
        class_weight: Weight of the cross-entropy of classes beside that of one pixel; 0 trains
            without labels.
        seed: Decides the initial weights.

    Raises:
        OptionError: A size is not a positive integer, or a weight is negative.
        ShapeError: A side of the image is no multiple of 4.

    Reference:
        Sinkhorn drifting, the MNIST protocol: a convolutional autoencoder of dimension 6.

    Example:
        >>> autoencoder = ConvAutoencoder((8, 8), dim=3).eval()
        >>> latents = autoencoder.encode(torch.zeros(5, 8, 8))
        >>> latents.shape, autoencoder.decode(latents).shape
        (torch.Size([5, 3]), torch.Size([5, 8, 8]))
    """

    def __init__(
        self,
        image_shape: Sides = (28, 28),
        dim: int = 6,
        classes: int = 10,
        *,
        channels: int = 16,
        width: int = 256,
        noise: float = 0.02,
        class_weight: float = 0.03,
        seed: int = 0,
    ) -> None:
        sides = check_sides(image_shape)
        sizes = {"dim": dim, "classes": classes, "channels": channels, "width": width}
        for name, size in sizes.items():
            check_positive(name, size, integer=True)
        weights = {"noise": noise, "class_weight": class_weight}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise OptionError(name, weight, "a finite number, 0 or more")
        super().__init__()
        self.settings = {"image_shape": sides, **sizes, **weights, "seed": seed}
        self.image_shape, self.dim = sides, dim
        self.noise, self.class_weight = noise, class_weight
        few, many = channels, 2 * channels
        small = (many, sides[0] // 4, sides[1] // 4)
        flat = math.prod(small)
        with seeded(seed):
            self.encoder = nn.Sequential(
                *(nn.Conv2d(1, few, 4, 2, 1), nn.BatchNorm2d(few), nn.ReLU()),
                *(nn.Conv2d(few, many, 4, 2, 1), nn.BatchNorm2d(many), nn.ReLU(), nn.Flatten()),
                *(nn.Linear(flat, width), nn.BatchNorm1d(width), nn.ReLU()),
                *(nn.Linear(width, dim), nn.BatchNorm1d(dim, affine=False)),
            )
            self.decoder = nn.Sequential(
                *(nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU()),
                *(nn.Linear(width, flat), nn.BatchNorm1d(flat), nn.ReLU()),
                nn.Unflatten(-1, small),
                *(nn.ConvTranspose2d(many, few, 4, 2, 1), nn.BatchNorm2d(few), nn.ReLU()),
                nn.ConvTranspose2d(few, 1, 4, 2, 1),
            )
            self.guess = nn.Linear(dim, classes)
        self.float()

    def encode(self, images: Tensor) -> Tensor:
        """Images ``(…, H, W)`` in [0, 1] to latents ``(…, d)``.

        Raises:
            ShapeError: The images have another height or width.
        """
        check_images(images, self.image_shape)
        flat = images.reshape(-1, 1, *self.image_shape)
        return self.encoder(flat).reshape(*images.shape[:-2], self.dim)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``(…, d)`` to images ``(…, H, W)`` in [0, 1].

        Raises:
            ShapeError: The latents have another dimension.
        """
        return self._logits(latents).sigmoid()

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Cross-entropy of pixels ``(n, H, W)``, and by its weight that of classes ``(n,)``."""
        latents = self.encode(images)
        noise = torch.randn(
            latents.shape, generator=generator, device=generator.device, dtype=latents.dtype
        )
        latents = latents + self.noise * noise.to(latents.device)
        loss = nn.functional.binary_cross_entropy_with_logits(self._logits(latents), images)
        if self.class_weight:
            loss = loss + self.class_weight * nn.functional.cross_entropy(
                self.guess(latents), labels
            )
        return loss

    def _logits(self, latents: Tensor) -> Tensor:
        if latents.shape[-1] != self.dim:
            raise ShapeError("latents", tuple(latents.shape), f"a shape (…, {self.dim})")
        images = self.decoder(latents.reshape(-1, self.dim))
        return images.reshape(*latents.shape[:-1], *self.image_shape)
