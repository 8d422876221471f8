"""Learning rates of their own for parts of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

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
