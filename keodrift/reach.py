"""The reach of relaxed marginals from the gaps of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from keodrift.checks import check_cloud, check_cost, check_positive
from keodrift.costs import as_cost
from keodrift.errors import ArgumentError, ShapeError
from keodrift.reductions import all_costs

GAPS = 3.0  # widest gaps: with one, some trainings keep a fifth of their points between modes
WITHIN = 5.0  # mean costs inside a part: as good as balanced there, 1 is worse and 0.2 shrinks


def reach_for_gaps(y: Tensor, *, cost: Any = "half_squared", cap: int = 2000) -> float:
    """A reach ρ with which mass crosses the widest gap between parts of the data.

    Where parts lie apart, mass must be able to cross what lies between them, so ρ is three times
    the cost of the longest edge of the single-linkage tree of the data. Within a part a reach of a
    few mean costs is as good as balanced marginals, and a smaller one shrinks what is learned; so
    five times the mean cost inside the parts is added, which fall apart where edges longer than
    half of the longest are cut.

    Args:
        y: Data, ``(M, d)``.
        cost: Ground cost; ½‖x−y‖² by default.
        cap: Points looked at, at most, drawn with a fixed seed; their costs are stored.

    Returns:
        ρ, in the unit of the cost.

    Raises:
        ArgumentError: ``y`` is not one cloud, or all its points coincide.

    Example:
        >>> import torch, keodrift as kd
        >>> y = torch.cat([torch.zeros(50, 1), torch.full((50, 1), 4.0)])
        >>> kd.reach_for_gaps(y)
        24.0
    """
    cost = as_cost(cost)
    check_positive("cap", cap, integer=True)
    points = check_cloud("y", y)
    if points.dim() != 2:
        raise ShapeError("y", f"shape {tuple(points.shape)}", "one cloud, a shape (M, d)")
    cost = check_cost(cost, points)
    if len(points) > cap:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randperm(len(points), generator=generator)[:cap]
        points = points[drawn.to(points.device)]
    costs = all_costs(points.double(), points.double(), cost)
    first, second = torch.triu_indices(len(points), len(points), 1, device=costs.device)
    lengths = ((costs + costs.mT) / 2)[first, second].cpu()
    if not bool((lengths > 0).any()):
        raise ArgumentError("y", "points that coincide", "two points at least with a cost")
    # Imported here: scipy takes longer to load than the package.
    from scipy.cluster.hierarchy import fcluster, linkage

    tree = linkage(lengths.numpy(), method="single")
    longest = float(tree[:, 2].max())
    parts = torch.from_numpy(fcluster(tree, longest / 2, criterion="distance"))
    inside = lengths[parts[first.cpu()] == parts[second.cpu()]]
    return GAPS * longest + WITHIN * (float(inside.mean()) if len(inside) else 0.0)
