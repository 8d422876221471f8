"""What is trained and how it is judged."""

from __future__ import annotations

from keodrift.tasks.latents import latent_batches
from keodrift.tasks.planar import PlanarTask, target_batches
from keodrift.tasks.sources import BalancedBatches, network_inputs

__all__ = [
    "BalancedBatches",
    "PlanarTask",
    "latent_batches",
    "network_inputs",
    "target_batches",
]
