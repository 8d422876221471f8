"""How a cloud is spread over known modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keodrift.checks import check_positive
from keodrift.metrics.clouds import check_pair
from keodrift.reductions import nearest


@dataclass(frozen=True, eq=False)
class ModeCoverage:
    """How a cloud is spread over known modes.

    Attributes:
        masses: Share of the cloud at each mode, ``(K,)``; each sample counts for its nearest
            centre, and only within the radius.
        nearest: Share of the cloud whose nearest centre is each, whatever the distance, ``(K,)``.
        stray: Share of the cloud near no mode.
        covered: Number of modes that hold at least half of an even share.
    """

    masses: Tensor
    nearest: Tensor
    stray: float
    covered: int

    @property
    def wrong_mass(self) -> float:
        """Mass that would have to change its mode for even shares, by the nearest of each point.

        ½ Σ |share − 1/K|: 0 for even shares, 1 − 1/K for all in one mode.
        """
        shares = self.nearest.double()
        return float((shares - 1 / len(shares)).abs().sum() / 2)


def mode_coverage(x: Tensor, modes: Tensor, radius: float) -> ModeCoverage:
    """Counts the mass of a cloud at known modes.

    Args:
        x: Samples ``(N, d)``.
        modes: Centres ``(K, d)``.
        radius: Distance up to which a sample counts for its nearest centre.

    Returns:
        Masses, stray mass, the number of covered modes (mass ≥ 1/2K), the mass in a wrong mode.

    Raises:
        ShapeError: The clouds are empty or live in different dimensions.
        NonFiniteError: A coordinate is NaN or infinite.
        ArgumentError: ``radius`` is not positive.

    Example:
        >>> modes = torch.tensor([[-1.0], [1.0]])
        >>> mode_coverage(torch.tensor([[-1.1], [0.9], [1.0], [9.0]]), modes, 0.5).masses
        tensor([0.2500, 0.5000])
    """
    check_pair(x, modes, "modes")
    check_positive("radius", radius)
    distance, mode = nearest(x.detach().double(), modes.to(x.device).double())
    counts = torch.bincount(mode[distance <= radius], minlength=len(modes))
    masses = counts.to(torch.float32) / len(x)
    return ModeCoverage(
        masses=masses,
        nearest=torch.bincount(mode, minlength=len(modes)) / len(x),
        stray=float(len(x) - counts.sum()) / len(x),
        covered=int((masses >= 0.5 / len(modes)).sum()),
    )
