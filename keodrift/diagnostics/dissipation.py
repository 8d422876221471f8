"""Whether an energy falls along a flow, as it does along its own gradient flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from keodrift.errors import ShapeError
from keodrift.flow import Flow


@dataclass(frozen=True, eq=False)
class Dissipation:
    """An energy along a path.

    Attributes:
        values: The energy of every kept cloud, ``(T, …)``.
    """

    values: Tensor

    @property
    def falling(self) -> Tensor:
        """Share of the steps at which it does not rise, ``(…,)``: 1 if it falls throughout."""
        return (self.values.diff(dim=0) <= 0).double().mean(0)

    @property
    def left(self) -> Tensor:
        """The energy at the end as a share of that at the start, ``(…,)``."""
        return self.values[-1] / self.values[0]


def dissipation(
    energy: Callable[[Tensor], Tensor | float],
    path: Flow | Sequence[Tensor] | Tensor,
    *,
    progress: bool = False,
) -> Dissipation:
    """An energy of the particles along a flow.

    Args:
        energy: Of a cloud ``(…, N, d)``, such as ``lambda x: sinkhorn_divergence(x, y, tau)``.
        path: A flow, or its clouds in order of time; two at least.
        progress: Show a progress bar on standard error.

    Returns:
        Its values, the share of steps at which it falls, and what is left at the end.

    Raises:
        ShapeError: Fewer than two clouds.

    Example:
        >>> path = [torch.full((1, 1), s) for s in (2.0, 1.0, 3.0)]
        >>> dissipation(lambda x: x.square().sum(), path).falling
        tensor(0.5000, dtype=torch.float64)
    """
    clouds = path.trajectory if isinstance(path, Flow) else path
    if len(clouds) < 2:
        raise ShapeError("path", f"{len(clouds)} clouds", "two at least")
    with torch.no_grad():
        values = [torch.as_tensor(energy(x)) for x in tqdm(clouds, "energy", disable=not progress)]
    return Dissipation(torch.stack(values))
