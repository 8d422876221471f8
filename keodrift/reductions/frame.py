"""Working coordinates: a quadratic cost in units of τ, clouds that lie apart each about its middle.

A quadratic cost separates under translations: with x = X + p and y = Y + q,

    ½‖x − y‖² = ½‖X − Y‖² + (p − q)·X − (p − q)·Y + ½‖p − q‖²,

so every term that does not mix the clouds leaves the pair loop and is kept in float64 beside it.
Clouds that lie 10⁴ bandwidths apart then cost no digits, even in float32. Clouds that are no
farther apart than they are wide have one origin, since there (p − q) would only cost digits itself.
Origins are medians, which a stray or padded point does not move.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from keodrift.costs import Cost

LOOKED_AT = 100  # points of a cloud, at most, by which its middle and width are judged


@dataclass(frozen=True)
class Frame:
    """Two clouds in working coordinates; the log-kernel is ``row_i + col_j − c(x_i, y_j)``.

    Attributes:
        x: Query points, ``(B, N, d)``.
        y: Atoms, ``(B, M, d)``.
        row: What depends on the query alone, float64 ``(B, N)``.
        col: What depends on the atom alone, float64 ``(B, M)``.
        y_origin: An atom is ``y_origin + y / scale``; ``(B, 1, d)``.
        x_origin: The same for queries.
        scale: Working lengths per length, float64 ``(B, 1, 1)``.
        rate: What a cost of working points is multiplied by, ``(B, 1, 1)``: 1/τ, or 1 where the
            scale has taken τ in.
        cost: The ground cost; ``c`` is ½‖x − y‖² if it is quadratic, else ``rate·cost``.
        tau: Temperature of each problem, in the unit of the cost, float64 ``(B, 1, 1)``.
        mask_self: Pairs i = j are excluded.
        x_own: The queries themselves, ``(B, N, d)``, where the cost lifts points; else None.
        y_own: The atoms themselves, likewise.
    """

    x: Tensor
    y: Tensor
    row: Tensor
    col: Tensor
    x_origin: Tensor
    y_origin: Tensor
    scale: Tensor
    rate: Tensor
    cost: Cost
    tau: Tensor
    mask_self: bool
    x_own: Tensor | None = None
    y_own: Tensor | None = None

    @property
    def quadratic(self) -> bool:
        """Whether c is ½‖x − y‖² of working points."""
        return self.cost.curvature is not None

    def transposed(self) -> Frame:
        """The same pairs with atoms as queries."""
        return replace(
            self,
            x=self.y,
            y=self.x.detach(),
            row=self.col,
            col=self.row.detach(),
            x_origin=self.y_origin,
            y_origin=self.x_origin,
            cost=self.cost.turned,
            x_own=self.y_own,
            y_own=None if self.x_own is None else self.x_own.detach(),
        )

    def to(self, dtype: torch.dtype) -> Frame:
        """The same pairs in another dtype; the queries keep their graph."""
        x, y, rate = (z.to(dtype) for z in (self.x, self.y, self.rate))
        x_own, y_own = (None if z is None else z.to(dtype) for z in (self.x_own, self.y_own))
        return replace(self, x=x, y=y, rate=rate, x_own=x_own, y_own=y_own)

    def part(self, b: int, rows: Tensor, columns: Tensor) -> Frame:
        """Some queries and atoms of one problem, by their indices."""
        one = slice(b, b + 1)
        return replace(
            self,
            x=self.x[one, rows],
            y=self.y[one, columns],
            row=self.row[one, rows],
            col=self.col[one, columns],
            x_origin=self.x_origin[one],
            y_origin=self.y_origin[one],
            scale=self.scale[one],
            rate=self.rate[one],
            tau=self.tau[one],
            x_own=None if self.x_own is None else self.x_own[one, rows],
            y_own=None if self.y_own is None else self.y_own[one, columns],
        )

    @property
    def values(self) -> Tensor:
        """What is averaged for a barycentre: working atoms, or offsets of what was lifted."""
        return self.y if self.y_own is None else self.y_own - _middle(self.y_own)

    def atoms(self, averages: Tensor) -> Tensor:
        """Brings averages of `values` back to the coordinates of the cloud."""
        if self.y_own is not None:
            return _middle(self.y_own) + averages
        return self.y_origin + averages / self.scale.to(averages.dtype)

    def lowered(self, slopes: Tensor) -> Tensor:
        """Slopes in working queries as slopes in the queries themselves."""
        lift, x = self.cost.lift, self.x_own
        if lift is None or x is None:
            return slopes
        # A view that was made without a graph still says that it needs one.
        graph = x.requires_grad and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            x = x if graph else x.detach().clone().requires_grad_()
            (found,) = torch.autograd.grad(lift(x), x, slopes.clone(), create_graph=graph)
        return found


def _middle(points: Tensor) -> Tensor:
    return points.mean(-2, keepdim=True)


def _ordered(values: Tensor, share: float) -> Tensor:
    """What a share of the values along axis 1 does not exceed, ``(B, 1, …)``."""
    # By sorting, which a GPU does deterministically, as it does not take medians.
    return values.sort(1).values[:, int(share * (values.shape[1] - 1))][:, None]


def _centre(points: Tensor, alive: Tensor | None) -> tuple[Tensor, Tensor]:
    """The middle of a cloud, ``(B, 1, d)``, and the square of its radius, ``(B, 1, 1)``.

    Nine tenths of the points are within the radius, of some that are evenly picked. Those that do
    not count are taken to be where the first is that does: padding may be anywhere.
    """
    step = -(-points.shape[1] // LOOKED_AT)
    some = points[:, ::step]
    if alive is not None:
        first = alive.int().argmax(-1)[:, None, None].expand(-1, 1, points.shape[-1])
        some = torch.where(alive[:, ::step, None], some, points.gather(1, first))
    middle = _ordered(some, 0.5)
    return middle, _ordered((some - middle).square().sum(-1, keepdim=True), 0.9)


def make_frame(
    x: Tensor,
    y: Tensor,
    cost: Cost,
    tau: Tensor,
    mask_self: bool,
    alive: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Frame:
    """Prepares ``x (B, N, d)``, ``y (B, M, d)`` and ``tau (B,)``; differentiable in ``x`` only.

    Origins are amid the points of x ``(B, N)`` and y ``(B, M)`` that are alive; all by default.
    """
    y = y.detach()
    x_own, y_own = None, None
    if cost.lift is not None:
        x_own, y_own = x, y
    x, y = cost.lifted(x), cost.lifted(y)
    tau = tau[:, None, None]
    scale, rate = torch.ones_like(tau), 1 / tau
    x_origin = y_origin = torch.zeros_like(y[:, :1])
    if cost.by_distance:
        y_origin, y_square = _centre(y, alive[1])
        x_origin = y_origin
    if cost.curvature is not None:
        # Only a quadratic cost turns two different origins into linear terms.
        x_origin, x_square = _centre(x.detach(), alive[0])
        apart = (x_origin - y_origin).square().sum(-1, keepdim=True) > x_square + y_square
        x_origin = torch.where(apart, x_origin, y_origin)
        scale, rate = (cost.curvature / tau).sqrt(), scale
    x_work, y_work = ((z - o) * scale.to(z.dtype) for z, o in ((x, x_origin), (y, y_origin)))
    shift = (x_origin.double() - y_origin.double()) * scale
    row = -(shift * x_work.double()).sum(-1) - shift.square().sum(-1) / 2
    col = (shift * y_work.double()).sum(-1)
    rate = rate.to(y.dtype)
    origins = x_origin, y_origin
    return Frame(
        x_work, y_work, row, col, *origins, scale, rate, cost, tau, mask_self, x_own, y_own
    )
