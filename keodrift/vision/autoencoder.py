"""A small convolutional autoencoder: grey images to a few numbers and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from keodrift.checks import check_positive
from keodrift.errors import OptionError, ShapeError
from keodrift.networks import _seeded
from keodrift.vision.fitting import Fittable
from keodrift.vision.pixels import Sides, check_images, check_sides


class ConvAutoencoder(Fittable):
    """Grey images to latents and back, two convolutions each way.

    Every latent coordinate has mean 0 and variance 1 over the training images (a batch
    normalisation without parameters), and the decoder learns from latents with a little noise on
    them: what is close in latent space looks alike.

    Args:
        image_shape: Height and width, multiples of 4.
        dim: Latent dimension d.
        channels: Channels of the first convolution; the second has twice as many.
        width: Width of the hidden linear layer.
        noise: Standard deviation of the noise on latents during training.
        seed: Decides the initial weights.

    Attributes:
        settings: The arguments above, by name: ``ConvAutoencoder(**settings)`` is one alike.

    Raises:
        OptionError: A size is not a positive integer.
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
        channels: int = 16,
        width: int = 256,
        noise: float = 0.02,
        seed: int = 0,
    ) -> None:
        for name, size in (("dim", dim), ("channels", channels), ("width", width)):
            check_positive(name, size, integer=True)
        if not 0 <= noise < math.inf:
            raise OptionError("noise", noise, "a number that is not negative")
        sides = check_sides(image_shape)
        super().__init__()
        self.settings = {
            "image_shape": sides,
            "dim": dim,
            "channels": channels,
            "width": width,
            "noise": noise,
            "seed": seed,
        }
        self.image_shape, self.dim, self.noise = sides, dim, noise
        few, many = channels, 2 * channels
        small = (many, sides[0] // 4, sides[1] // 4)
        with _seeded(seed):
            self.encoder = nn.Sequential(
                *(nn.Conv2d(1, few, 4, 2, 1), nn.ReLU()),
                *(nn.Conv2d(few, many, 4, 2, 1), nn.ReLU(), nn.Flatten()),
                *(nn.Linear(math.prod(small), width), nn.ReLU()),
                *(nn.Linear(width, dim), nn.BatchNorm1d(dim, affine=False)),
            )
            self.decoder = nn.Sequential(
                *(nn.Linear(dim, width), nn.ReLU()),
                *(nn.Linear(width, math.prod(small)), nn.ReLU(), nn.Unflatten(-1, small)),
                *(nn.ConvTranspose2d(many, few, 4, 2, 1), nn.ReLU()),
                nn.ConvTranspose2d(few, 1, 4, 2, 1),
            )

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
        """Cross-entropy of pixels ``(n, H, W)`` after latents with noise; labels play no part."""
        latents = self.encode(images)
        noise = torch.randn(latents.shape, generator=generator)
        logits = self._logits(latents + self.noise * noise)
        return nn.functional.binary_cross_entropy_with_logits(logits, images)

    def _logits(self, latents: Tensor) -> Tensor:
        if latents.shape[-1] != self.dim:
            raise ShapeError("latents", tuple(latents.shape), f"a shape (…, {self.dim})")
        images = self.decoder(latents.reshape(-1, self.dim))
        return images.reshape(*latents.shape[:-1], *self.image_shape)
