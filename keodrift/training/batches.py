"""What one training step is fed: noise for the network and real samples for the drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What one training step needs.

    Attributes:
        inputs: Arguments of the network: noise, and classes if it takes them.
        data: Real samples ``(M, d)``.
        options: Keyword arguments of the drift: labels, weights, negatives.
        balanced: Whether noise and data cover their laws more evenly than independent draws do.
    """

    inputs: tuple[Tensor, ...]
    data: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)
    balanced: bool = False


# Any function of a random generator. A source that holds more state than that generator brings
# state_dict and load_state_dict, and its runs resume exactly.
BatchSource = Callable[[torch.Generator], Batch]
