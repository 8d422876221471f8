"""An entropic transport problem: two weighted clouds, a cost, a temperature and an engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from keodrift.costs import Cost
from keodrift.reductions import ENGINES, Engine, GibbsKernel, gibbs_kernel, mean_cost
from keodrift.transport.clusters import Clusters
from keodrift.transport.marginals import Exact, Marginals, Relaxed


@dataclass(frozen=True, eq=False)
class EntropicProblem:
    """OT_τ between the clouds x (rows) and y (columns), or OT_{τ,ρ} with relaxed marginals.

    Potentials f on x and g on y are in units of τ; the coupling is exp(f_i + g_j − C_ij/τ) a_i b_j.

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
        reach: ρ, in the unit of the cost: a marginal π₁ costs ρ·KL(π₁ | a). None: it is a. One for
            all, or one a problem.
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
    reach: float | Tensor | None = None

    @cached_property
    def kernel(self) -> GibbsKernel:
        """The Gibbs kernel of x and y; its transpose is ``kernel.T``."""
        return gibbs_kernel(
            self.x,
            self.y,
            self.cost,
            self.tau,
            mask_self=self.masked,
            backend=self.backend,
            alive=(self.a > 0, self.b > 0),
        )

    @cached_property
    def steepness(self) -> float:
        """The mean cost in units of τ, the largest of a batch."""
        return float((mean_cost(self.x, self.y, self.cost, 64).abs() / self.tau).max())

    @cached_property
    def infeasible(self) -> Tensor:
        """Whether no coupling has these marginals, ``(…,)``; relaxed ones there always are.

        Masked, what yᵢ takes in comes from the others, who have 1 − aᵢ to give.
        """
        held = self.masked and self.reach is None
        pairs = min(self.a.shape[-1], self.b.shape[-1])
        both = self.a[..., :pairs] + self.b[..., :pairs]
        return (both > 1 + 1e-12).any(-1) & held

    @cached_property
    def marginals(self) -> Marginals:
        """What holds the coupling to a and b."""
        if self.reach is None:
            return Exact()
        reach, tau = (
            torch.as_tensor(z, dtype=torch.float64, device=self.b.device)
            for z in (self.reach, self.tau)
        )
        return Relaxed((reach / tau)[..., None])

    @property
    def damping(self) -> float | Tensor:
        """λ = ρ/(ρ + τ) of a half-step f = −λ·log-mass, ``(…,)``; 1.0 without a reach."""
        damping = self.marginals.damping
        return damping[..., 0] if isinstance(damping, Tensor) else damping

    def row_step(self, g: Tensor, guess: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """The half-step f = −λ log Σ_j b_j exp(g_j − C_ij/τ), ``(…, N)``.

        Args:
            g: Potential on y, ``(…, M)``.
            guess: A potential near the answer, which makes it cheaper.
            at: Points ``(…, N, d)`` to have it at in the place of x.
        """
        kernel = self.kernel
        if at is not None:
            alive = None, self.b > 0
            kernel = gibbs_kernel(
                at, self.y, self.cost, self.tau, backend=self.backend, alive=alive
            )
        return self._half_step(kernel, self._log_weights[1], g, guess)

    def column_step(
        self, f: Tensor, guess: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """The half-step g = −λ log Σ_i a_i exp(f_i − C_ij/τ), ``(…, M)``; as `row_step`."""
        if at is None:
            return self._half_step(self.kernel.T, self._log_weights[0], f, guess)
        alive, turned = (None, self.a > 0), self.cost.turned
        kernel = gibbs_kernel(at, self.x, turned, self.tau, backend=self.backend, alive=alive)
        return self._half_step(kernel, self._log_weights[0], f, guess)

    @cached_property
    def _log_weights(self) -> tuple[Tensor, Tensor]:
        return self.a.log(), self.b.log()

    def _half_step(
        self, kernel: GibbsKernel, log_weights: Tensor, potential: Tensor, guess: Tensor | None
    ) -> Tensor:
        near = None if guess is None else self.marginals.log_mass(guess)
        mass = kernel.log_mass(log_weights + potential, near)
        # A query without atoms (its own, masked) has no row to normalise; its potential is 0.
        return self.marginals.potential(mass.masked_fill(torch.isneginf(mass), 0))

    def dual(self, f: Tensor, g: Tensor) -> Tensor:
        """What no half-step lowers, where f is the half-step of g, in units of τ, ``(…,)``."""
        a, b = self._paired
        return self.marginals.dual(a, f, b, g)

    def value(self, f: Tensor, g: Tensor) -> Tensor:
        """The dual value, where f is the half-step of g, in the unit of the cost, ``(…,)``."""
        return self.tau * self.marginals.value(self.dual(f, g))

    def centred(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The dual, and potentials with the best constant, f still the half-step of g."""
        a, b = self._paired
        return self.marginals.centred(a, f, b, g)

    def marginal_error(self, g: Tensor, image: Tensor) -> Tensor:
        """Relative L1 error of the column marginal at g, by the sweep ``image`` from g, ``(…,)``.

        That is Σ_j b_j |exp(g_j − image_j) − 1|; relaxed, where the marginal that belongs to g is
        b·exp(−g/r), Σ_j b_j e^(−g_j/r) |exp((g_j − image_j)/λ) − 1| / Σ_j b_j e^(−g_j/r).
        """
        return self.marginals.error(self._paired[1], g, image)

    def rounding(self, f: Tensor, g: Tensor) -> Tensor:
        """How much of that error the arithmetic on pairs cannot see, ``(…,)``."""
        a, b = self._paired
        (a, f), (b, g) = self.marginals.as_exact(a, f), self.marginals.as_exact(b, g)
        return self.kernel.rounding(a, b, f, g)

    @cached_property
    def _paired(self) -> tuple[Tensor, Tensor]:
        """Weights of the points that hold mass: one alone with itself, masked, gives up its own."""
        if not self.masked or self.reach is None:
            return self.a, self.b
        alone = self.kernel.empty_rows(self.b.log()), self.kernel.T.empty_rows(self.a.log())
        a, b = (
            w if lone is None else w.masked_fill(lone & ~(lone | (w == 0)).all(-1, True), 0)
            for w, lone in zip((self.a, self.b), alone, strict=True)
        )
        return a, b

    def at(self, tau: float | Tensor) -> EntropicProblem:
        """The clouds at another temperature, without mask."""
        return replace(self, tau=tau, masked=False, backend=self._light)

    @property
    def count(self) -> int:
        """How many problems a batch holds."""
        return math.prod(self.a.shape[:-1])

    def parts(self, most: int) -> Iterator[EntropicProblem]:
        """The problems of a batch without its axes, at most so many at a time."""
        batch = self.a.shape[:-1]

        def split(value: Any) -> Sequence[Any]:
            if value is None:
                return [None] * -(-self.count // most)
            z = torch.as_tensor(value, dtype=torch.float64, device=self.b.device).expand(batch)
            return z.reshape(-1).split(most)

        clouds = [z.reshape(-1, *z.shape[-2:]).split(most) for z in (self.x, self.y)]
        weights = [z.reshape(-1, z.shape[-1]).split(most) for z in (self.a, self.b)]
        rest = zip(*clouds, *weights, split(self.tau), split(self.reach), strict=True)
        for x, y, a, b, tau, reach in rest:
            yield replace(self, x=x, y=y, a=a, b=b, tau=tau, reach=reach)

    def coarsened(self, clusters: int, find: Clusters) -> EntropicProblem:
        """The same problem between at most so many clusters, without mask."""
        x, a = find(self.x, self.a, clusters)
        y, b = (x, a) if self.symmetric else find(self.y, self.b, clusters)
        return replace(self, x=x, y=y, a=a, b=b, masked=False, backend=self._light)

    @property
    def _light(self) -> str | Engine:
        """Problems beside this one pick their engine, unless one was asked for that needs none."""
        engine = ENGINES.get(self.backend) if isinstance(self.backend, str) else self.backend
        return "auto" if engine is None or engine.compiles else self.backend
