"""Training a one-step network: batches, the loss, the loop, its log and its exact resume."""

from __future__ import annotations

from keodrift.training.batches import Batch, BatchSource
from keodrift.training.loop import Trainer
from keodrift.training.negatives import NEGATIVES
from keodrift.training.objective import Objective
from keodrift.training.rates import LateFall, grouped_parameters
from keodrift.training.state import checkpoints

__all__ = [
    "NEGATIVES",
    "Batch",
    "BatchSource",
    "LateFall",
    "Objective",
    "Trainer",
    "checkpoints",
    "grouped_parameters",
]
