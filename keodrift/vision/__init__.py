"""Images to latents and to classes: the networks around a generator, trained once and kept."""

from __future__ import annotations

from keodrift.vision.autoencoder import ConvAutoencoder
from keodrift.vision.cached import cache_folder
from keodrift.vision.classifier import ImageClassifier, accuracy, class_probabilities
from keodrift.vision.fitting import Fittable, fit
from keodrift.vision.trained import (
    image_autoencoder,
    image_classifier,
    image_latents,
    latents_of,
)

__all__ = [
    "ConvAutoencoder",
    "Fittable",
    "ImageClassifier",
    "accuracy",
    "cache_folder",
    "class_probabilities",
    "fit",
    "image_autoencoder",
    "image_classifier",
    "image_latents",
    "latents_of",
]
