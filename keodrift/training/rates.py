"""Learning rates: of their own for parts of a network, and falling late in a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from keodrift.checks import check_positive
from keodrift.errors import OptionError


def grouped_parameters(network: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters of a network as an optimiser takes them, some at learning rates of their own.

    Args:
        network: The network.
        rates: Learning rates of submodules, by their dotted names.

    Returns:
        Groups: what is left, at the optimiser's own rate, then one a submodule.

    Raises:
        OptionError: There is no such submodule, one lies in another, or a rate is not positive.

    Example:
        >>> import torch
        >>> from keodrift.networks import ConditionalMLP
        >>> groups = grouped_parameters(ConditionalMLP(), {"embedding": 1e-3})
        >>> [group["lr"] for group in torch.optim.Adam(groups, lr=3e-4).param_groups]
        [0.0003, 0.001]
    """
    rest, groups = dict(network.named_parameters()), []
    for name, rate in rates.items():
        check_positive(f"rates.{name}", rate)
        for outer in rates:
            if name.startswith(f"{outer}."):
                raise OptionError("rates", f"{name!r}, which lies in {outer!r}", "parts apart")
        mine = {key: rest.pop(key) for key in list(rest) if key.startswith(f"{name}.")}
        if not mine:
            parts = [part for part, _ in network.named_children()]
            raise OptionError("rates", repr(name), f"a part of the network: {', '.join(parts)}")
        groups.append({"params": list(mine.values()), "lr": rate})
    return [{"params": list(rest.values())}, *groups]


class LateFall(LambdaLR):
    """The optimiser's rate for most of a training, then in a straight line to zero.

    At a constant rate the masses of modes wander with every batch; one that falls from the start
    leaves less training. This one settles what was learned, and takes little away.

    Args:
        optimizer: Whose rate it is.
        steps: Length of the training, where the rate is zero.
        share: Of them, over which it falls.

    Raises:
        OptionError: ``steps`` is not a positive integer, or ``share`` not in (0, 1].

    Source:
        Hägele et al., Scaling laws and compute-optimal training beyond fixed training durations,
        NeurIPS 2024: a constant rate with a cooldown.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> LateFall(torch.optim.SGD([weight], lr=0.1), steps=100).get_last_lr()
        [0.1]
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, share: float = 0.4) -> None:
        check_positive("steps", steps, integer=True)
        check_positive("share", share)
        if share > 1:
            raise OptionError("share", share, "a share of the steps, in (0, 1]")
        self.total_steps = steps
        super().__init__(
            optimizer, lambda step: min(1.0, max(0.0, (steps - step) / (share * steps)))
        )
