"""Noise and data that cover their laws more evenly than independent draws do.

Every single sample keeps its law; the samples of one draw depend on each other, and by that the
counts of any region fluctuate less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from keodrift.checks import check_cloud, check_positive
from keodrift.errors import ArgumentError, OptionError, ShapeError

DIRECTIONS = 8  # a tree over 10⁵ points splits each of them twice; more are never reached
COVARIANCE_POINTS = 4096


def balanced_normal(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise from a Sobol sequence, scrambled afresh at every call.

    Args:
        n: How many rows; counts are the most even where it is a power of 2.
        dim: Dimension of the noise.
        generator: Decides the scrambling, by one number drawn from it; decides the device too.

    Returns:
        ``(n, dim)``, float32. Every row by itself is N(0, I); together they cover it.

    Raises:
        OptionError: A size is not a positive integer, or ``dim`` is above the 21201 dimensions
            whose Sobol sequences are known.

    Source:
        Joe and Kuo, Constructing Sobol sequences with better two-dimensional projections, 2008;
        the scrambling: Matoušek, On the L₂-discrepancy for anchored boxes, 1998.

    Example:
        >>> noise = balanced_normal(256, 2, torch.Generator().manual_seed(0))
        >>> int((noise[:, 0] > 0).sum())
        128
    """
    check_positive("n", n, integer=True)
    check_positive("dim", dim, integer=True)
    if dim > SobolEngine.MAXDIM:
        raise OptionError("dim", dim, f"at most the {SobolEngine.MAXDIM} dimensions of Sobol")
    engine = SobolEngine(dim, scramble=True, seed=_seed(generator))
    points = engine.draw(n, dtype=torch.float64)
    cells = 2.0**SobolEngine.MAXBIT
    points[0] = engine.shift.double() / cells  # torch rounds this one to single precision
    middles = points + 0.5 / cells  # never 0 or 1, where the normal would be infinite
    return torch.special.ndtri(middles).to(generator.device, torch.float32)


def neighbour_order(points: Tensor) -> Tensor:
    """An order in which neighbours in space lie near each other: the leaves of a kd-tree.

    Args:
        points: ``(M, d)``. Above d = 8 the tree is one of their leading principal directions.

    Returns:
        A permutation ``(M,)``, int64, on their device; the same at every call. Its halves, their
        halves and so on are the cells of the tree, divided at medians.

    Raises:
        ArgumentError: The points are no finite unbatched cloud.

    Source:
        Bentley, Multidimensional binary search trees used for associative searching, 1975.

    Example:
        >>> neighbour_order(torch.tensor([[0.0], [9.0], [1.0], [8.0]])).tolist()
        [0, 2, 3, 1]
    """
    from scipy.spatial import cKDTree

    z = check_cloud("points", points).double()
    if z.dim() != 2:
        raise ShapeError("points", f"shape {tuple(z.shape)}", "an unbatched (M, d)")
    if z.shape[1] > DIRECTIONS:
        few = z[:: -(-len(z) // COVARIANCE_POINTS)]
        _, axes = torch.linalg.eigh((few - few.mean(0)).T @ (few - few.mean(0)))
        z = z @ axes[:, -DIRECTIONS:]
    tree = cKDTree(z.cpu().numpy(), leafsize=1, balanced_tree=True)
    return torch.as_tensor(tree.indices, dtype=torch.int64, device=points.device)


class Systematic:
    """Draws indices evenly along an order, without replacement until all were drawn.

    Of the R indices left in an epoch, a draw of n takes those at ⌊(k + u)·R/n⌋, k = 0…n−1, with
    one u for all, uniform on the multiples of 1/R in [0, 1). So every index is equally likely,
    an epoch visits each of them once whatever n, and where n divides their number M each draw
    takes one from each of n strata of equal size.

    Args:
        order: The indices ``(M,)``, int64, neighbours next to each other; see `neighbour_order`.

    Raises:
        ShapeError: ``order`` is not a row of at least one index.

    Source:
        Madow, On the theory of systematic sampling II, 1949.

    Example:
        >>> draw, generator = Systematic(torch.arange(6)).draw, torch.Generator().manual_seed(0)
        >>> sorted(draw(4, generator).tolist() + draw(2, generator).tolist())
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, order: Tensor) -> None:
        if order.dim() != 1 or not len(order):
            raise ShapeError("order", f"shape {tuple(order.shape)}", "at least one index (M,)")
        self._order = self._left = order

    @property
    def left(self) -> int:
        """How many indices the epoch has left; 0 at its end."""
        return len(self._left)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws indices; what the epoch cannot give comes from the next ones.

        Args:
            n: How many; may exceed M.
            generator: The only source of randomness; it may live on another device.

        Returns:
            ``(n,)``, in the order's dtype and on its device, sorted along it within an epoch.

        Raises:
            OptionError: ``n`` is not a positive integer.
        """
        check_positive("n", n, integer=True)
        parts = []
        while n:
            if not self.left:
                self._left = self._order
            parts.append(self._take(min(n, self.left), generator))
            n -= len(parts[-1])
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """What is left of the epoch."""
        return {"size": len(self._order), "left": self._left}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Goes on in that epoch.

        Raises:
            ArgumentError: The state is of another number of indices.
        """
        _check_size(state_dict["size"], len(self._order))
        self._left = state_dict["left"].to(self._order)

    def _take(self, n: int, generator: torch.Generator) -> Tensor:
        device = self._order.device
        shift = torch.randint(self.left, (), generator=generator, device=generator.device)
        # In integers, since a rounded (k + u)·R/n could reach R or take a position twice.
        at = (torch.arange(n, device=device) * self.left + int(shift)) // n
        taken = self._left[at]
        stays = torch.ones(self.left, dtype=torch.bool, device=device)
        stays[at] = False
        self._left = self._left[stays]
        return taken


class Pool:
    """Draws evenly and endlessly from a law that is known by a function alone.

    A large cloud of independent points is drawn and sampled by `Systematic` along its
    `neighbour_order`; when each point was drawn once, a fresh cloud takes its place.

    Args:
        sampler: Makes ``n`` independent points ``(n, d)`` from a generator on the CPU.
        size: Points of a cloud. The more, the closer its own counts are to the law's.

    Raises:
        OptionError: ``size`` is not a positive integer.

    Example:
        >>> pool = Pool(lambda n, generator: torch.rand(n, 1, generator=generator), size=4096)
        >>> points = pool.draw(1024, torch.Generator().manual_seed(0))
        >>> abs(int((points < 0.25).sum()) - 256) < 20
        True
    """

    def __init__(
        self, sampler: Callable[[int, torch.Generator], Tensor], size: int = 65536
    ) -> None:
        check_positive("size", size, integer=True)
        self._sampler, self._size = sampler, size
        self._cloud: tuple[int, Tensor, Systematic] | None = None

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws points.

        Args:
            n: How many; may exceed the pool's size.
            generator: The only source of randomness; decides the device too.

        Returns:
            ``(n, d)``.

        Raises:
            OptionError: ``n`` is not a positive integer.
        """
        check_positive("n", n, integer=True)
        parts = []
        while n:
            if self._cloud is None or not self._cloud[2].left:
                self._cloud = self._make(_seed(generator))
            _, points, picks = self._cloud
            parts.append(points[picks.draw(min(n, picks.left), generator)])
            n -= len(parts[-1])
        return torch.cat(parts).to(generator.device)

    def state_dict(self) -> dict[str, Any]:
        """The seed of the cloud and what is left of it, not its points."""
        if self._cloud is None:
            return {"size": self._size}
        seed, _, picks = self._cloud
        return {"size": self._size, "seed": seed, "picks": picks.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Makes that cloud again and goes on with what was left of it.

        Raises:
            ArgumentError: The state is of a pool of another size.
        """
        _check_size(state_dict["size"], self._size)
        self._cloud = None
        if "seed" in state_dict:
            self._cloud = self._make(state_dict["seed"])
            self._cloud[2].load_state_dict(state_dict["picks"])

    def _make(self, seed: int) -> tuple[int, Tensor, Systematic]:
        # On the CPU, where the tree is built; a checkpoint then holds on any device.
        points = self._sampler(self._size, torch.Generator().manual_seed(seed))
        order = neighbour_order(points)
        return seed, points[order], Systematic(torch.arange(self._size))


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _check_size(saved: int, mine: int) -> None:
    if saved != mine:
        raise ArgumentError("state_dict", f"a state of {saved} points", f"one of {mine}")
