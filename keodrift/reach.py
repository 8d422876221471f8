"""The gaps of the data, and the reach of relaxed marginals that crosses them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from keodrift.checks import check_cloud, check_positive
from keodrift.costs import as_cost, check_cost
from keodrift.errors import ArgumentError, ShapeError
from keodrift.reductions import all_costs

GAPS = 3.0  # widest gaps: with one, some trainings keep a fifth of their points between modes
MODE = 0.05  # share of the data from which a part counts as a mode
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
    lengths, first, second = _costs(y, cost, cap)
    if not bool((lengths > 0).any()):
        raise ArgumentError("y", "points that coincide", "two points at least with a cost")
    tree = _tree(lengths)
    longest = float(tree[:, 2].max())
    # Imported here: scipy takes longer to load than the package.
    from scipy.cluster.hierarchy import fcluster

    parts = torch.from_numpy(fcluster(tree.numpy(), longest / 2, criterion="distance"))
    inside = lengths[parts[first] == parts[second]]
    return GAPS * longest + WITHIN * (float(inside.mean()) if len(inside) else 0.0)


def mode_gap(y: Tensor, *, cost: Any = "half_squared", cap: int = 2000) -> float:
    """Cost of the widest gap between two parts of the data that hold 5 % of it each.

    A kernel exp(−C/τ) sees across a gap of cost c with a weight of exp(−c/τ) at most.

    Args:
        y: Data, ``(M, d)``.
        cost: Ground cost; ½‖x−y‖² by default.
        cap: Points looked at, at most, as in `reach_for_gaps`.

    Returns:
        The longest edge of the single-linkage tree with that much on either side, in the unit of
        the cost; 0 where points only ever join few by few.

    Raises:
        ArgumentError: ``y`` is not one cloud.

    Example:
        >>> import torch, keodrift as kd
        >>> y = torch.cat([torch.zeros(50, 1), torch.full((50, 1), 4.0)])
        >>> mode_gap(y)
        8.0
    """
    lengths, *_ = _costs(y, cost, cap)
    if not bool((lengths > 0).any()):
        return 0.0
    tree = _tree(lengths)
    points = len(tree) + 1
    held = torch.cat([torch.ones(points, dtype=tree.dtype, device="cpu"), tree[:, 3]])
    wide = held[tree[:, :2].long()].amin(-1) >= MODE * points
    return float(tree[wide, 2].max()) if bool(wide.any()) else 0.0


def _costs(y: Tensor, cost: Any, cap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Costs of the pairs of some data and the indices of both points."""
    cost = as_cost(cost)
    check_positive("cap", cap, integer=True)
    points = check_cloud("y", y)
    if points.dim() != 2:
        raise ShapeError("y", f"shape {tuple(points.shape)}", "one cloud, a shape (M, d)")
    cost = check_cost(cost, points)
    if len(points) > cap:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randperm(len(points), generator=generator, device="cpu")[:cap]
        points = points[drawn.to(points.device)]
    costs = all_costs(points.double(), points.double(), cost)
    costs = ((costs + costs.mT) / 2).cpu()
    first, second = torch.triu_indices(len(points), len(points), 1, device="cpu")
    return costs[first, second], first, second


def _tree(lengths: Tensor) -> Tensor:
    """The single-linkage tree: a row a join, with the two parts, its length and its size."""
    from scipy.cluster.hierarchy import linkage

    return torch.from_numpy(linkage(lengths.numpy(), method="single"))
