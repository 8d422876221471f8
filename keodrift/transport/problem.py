"""An entropic transport problem: two weighted clouds, a cost, a temperature and an engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from keodrift.costs import Cost
from keodrift.reductions import ENGINES, Engine, GibbsKernel, gibbs_kernel
from keodrift.transport.clusters import clustered


@dataclass(frozen=True, eq=False)
class EntropicProblem:
    """OT_τ between the clouds x (rows) and y (columns).

    Attributes:
        x: ``(…, N, d)``.
        y: ``(…, M, d)``.
        a: Weights of x, float64 ``(…, N)``, sum 1.
        b: Weights of y, float64 ``(…, M)``, sum 1.
        cost: The ground cost.
        tau: Temperature, in the unit of the cost; one for all, or one a problem of the batch.
        backend: Engine, or ``"auto"``.
        masked: Pairs i = j are excluded.
        symmetric: The clouds are one and so are the costs of (x, y) and (y, x): one potential is
            both.
    """

    x: Tensor
    y: Tensor
    a: Tensor
    b: Tensor
    cost: Cost
    tau: float | Tensor
    backend: str | Engine = "auto"
    masked: bool = False
    symmetric: bool = False

    @cached_property
    def kernel(self) -> GibbsKernel:
        """The Gibbs kernel of x and y; its transpose is ``kernel.T``."""
        return gibbs_kernel(
            self.x, self.y, self.cost, self.tau, mask_self=self.masked, backend=self.backend
        )

    @cached_property
    def infeasible(self) -> Tensor:
        """Whether no coupling has these marginals, ``(…,)``.

        Masked, what yᵢ takes in comes from the others, who have 1 − aᵢ to give.
        """
        pairs = min(self.a.shape[-1], self.b.shape[-1])
        both = self.a[..., :pairs] + self.b[..., :pairs]
        return (both > 1 + 1e-12).any(-1) & self.masked

    def at_rows(self, points: Tensor) -> GibbsKernel:
        """The kernel of further rows, ``points`` in the place of x, and y."""
        return gibbs_kernel(points, self.y, self.cost, self.tau, backend=self.backend)

    def at_columns(self, points: Tensor) -> GibbsKernel:
        """The transposed kernel of further columns: ``points`` in the place of y, and x."""
        return gibbs_kernel(points, self.x, self.cost.turned, self.tau, backend=self.backend)

    def at(self, tau: float | Tensor) -> EntropicProblem:
        """The clouds at another temperature, without mask."""
        return replace(self, tau=tau, masked=False, backend=self._light)

    def coarsened(self, clusters: int) -> EntropicProblem:
        """The same problem between at most so many clusters, without mask."""
        x, a = clustered(self.x, self.a, clusters)
        y, b = (x, a) if self.symmetric else clustered(self.y, self.b, clusters)
        return replace(self, x=x, y=y, a=a, b=b, masked=False, backend=self._light)

    @property
    def _light(self) -> str | Engine:
        """Problems beside this one pick their engine, unless one was asked for that needs none."""
        engine = ENGINES.get(self.backend) if isinstance(self.backend, str) else self.backend
        return "auto" if engine is None or engine.compiles else self.backend
