"""Working coordinates: a quadratic cost in units of τ, each cloud about its own mean.

A quadratic cost separates under translations: with x = X + p and y = Y + q,

    ½‖x − y‖² = ½‖X − Y‖² + (p − q)·X − (p − q)·Y + ½‖p − q‖²,

so every term that does not mix the clouds leaves the pair loop and is kept in float64 beside it.
Clouds that lie 10⁴ bandwidths apart then cost no digits, even in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from keodrift.costs import Cost


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
        )

    def to(self, dtype: torch.dtype) -> Frame:
        """The same pairs in another dtype; the queries keep their graph."""
        x, y, rate = (z.to(dtype) for z in (self.x, self.y, self.rate))
        return replace(self, x=x, y=y, rate=rate)

    def atoms(self, working: Tensor) -> Tensor:
        """Brings averages of working atoms back to the coordinates of the cloud."""
        return self.y_origin + working / self.scale.to(working.dtype)


def make_frame(x: Tensor, y: Tensor, cost: Cost, tau: Tensor, mask_self: bool) -> Frame:
    """Prepares ``x (B, N, d)``, ``y (B, M, d)`` and ``tau (B,)``; differentiable in ``x`` only."""
    y = y.detach()
    tau = tau[:, None, None]
    scale, rate = torch.ones_like(tau), 1 / tau
    x_origin = y_origin = torch.zeros_like(y[:, :1])
    if cost.by_distance:
        x_origin = y_origin = y.mean(-2, keepdim=True)
    if cost.curvature is not None:
        # Only a quadratic cost turns two different origins into linear terms.
        x_origin = x.detach().mean(-2, keepdim=True)
        scale, rate = (cost.curvature / tau).sqrt(), scale
    x_work, y_work = ((z - o) * scale.to(z.dtype) for z, o in ((x, x_origin), (y, y_origin)))
    shift = (x_origin.double() - y_origin.double()) * scale
    row = -(shift * x_work.double()).sum(-1) - shift.square().sum(-1) / 2
    col = (shift * y_work.double()).sum(-1)
    rate = rate.to(y.dtype)
    return Frame(x_work, y_work, row, col, x_origin, y_origin, scale, rate, cost, tau, mask_self)
