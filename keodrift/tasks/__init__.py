"""What is trained and how it is judged."""

from __future__ import annotations

from keodrift.tasks.latents import latent_batches
from keodrift.tasks.planar import PlanarTask, target_batches

__all__ = ["PlanarTask", "latent_batches", "target_batches"]
