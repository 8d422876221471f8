"""What is trained and how it is judged."""

from __future__ import annotations

from keodrift.tasks.guidance import Guidance, GuidedBatches
from keodrift.tasks.latent_batches import latent_batches
from keodrift.tasks.latents import LatentTask
from keodrift.tasks.planar import PlanarTask, target_batches
from keodrift.tasks.sources import BalancedBatches, network_inputs
from keodrift.tasks.task import Task

__all__ = [
    "BalancedBatches",
    "Guidance",
    "GuidedBatches",
    "LatentTask",
    "PlanarTask",
    "Task",
    "latent_batches",
    "network_inputs",
    "target_batches",
]
