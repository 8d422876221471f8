"""What is trained and how it is judged."""

from __future__ import annotations

from keodrift.tasks.balanced import BalancedBatches, balanced_inputs
from keodrift.tasks.latents import latent_batches
from keodrift.tasks.planar import PlanarTask, target_batches

__all__ = [
    "BalancedBatches",
    "PlanarTask",
    "balanced_inputs",
    "latent_batches",
    "target_batches",
]
