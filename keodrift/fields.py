"""Drift fields: V at any point, and on which particles it was fitted.

Softmax fields have a data side and a model side, V(z) = m⁺(T⁺(z) − z) − m⁻(T⁻(z) − z). Each side is
a cloud with a bias (one formula for every field); what differs between the methods is how the
biases and the masses m± come about.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keodrift.checks import check_queries
from keodrift.costs import Cost
from keodrift.errors import ArgumentError
from keodrift.reductions import Engine, GibbsKernel, gibbs_kernel
from keodrift.transport import Coupling

LARGEST = math.log(1e15)  # log of a mass, with which velocities still fit into float32


class Field(ABC):
    """A fitted drift, callable at any point.

    Attributes:
        particles: The particles it was fitted on, ``(…, N, d)``.
        couplings: What was solved to find it; empty where nothing was.
        kernels: Those at the particles that the fit has built and keeps, or None.
    """

    particles: Tensor
    couplings: tuple[Coupling, ...] = ()
    kernels: tuple[GibbsKernel, GibbsKernel] | None = None

    @abstractmethod
    def __call__(self, z: Tensor | None = None) -> Tensor:
        """The drift at ``z (…, K, d)``, or at the particles."""

    @property
    def half_steps(self) -> int:
        """Half-steps on the slower of its problems, that of the barycentre included."""
        return max((coupling.half_steps for coupling in self.couplings), default=1)

    @property
    def marginal_error(self) -> Tensor | None:
        """Largest L1 error of the couplings' inexact marginals, ``(…,)``; None without any."""
        errors = [coupling.marginal_error for coupling in self.couplings]
        return torch.stack(errors).amax(0) if errors else None

    @property
    def converged(self) -> Tensor | None:
        """Whether all couplings reached their tolerance, ``(…,)`` bool; None without any."""
        reached = [coupling.converged for coupling in self.couplings]
        return torch.stack(reached).all(0) if reached else None

    @property
    def reason(self) -> str:
        """Why the solver ended, in words."""
        return "; ".join(dict.fromkeys(c.reason for c in self.couplings)) or "nothing was solved"

    def report(self) -> dict[str, float]:
        """What its solve says of itself, for a log; of several problems the largest number.

        ``half_steps``, and ``marginal_error`` where it is known: a fixed number of half-steps
        measures none. Nothing where nothing was solved.
        """
        errors = [float(c.error.max()) for c in self.couplings if c.error is not None]
        row: dict[str, float] = {"half_steps": self.half_steps} if self.couplings else {}
        return row | ({"marginal_error": max(errors)} if errors else {})

    def release(self) -> None:
        """Gives back blocks of pairs; they are formed again where they are asked for."""
        for kernel in self.kernels or ():
            kernel.release()


def two_sides(field: Field, argument: str = "field") -> SoftmaxField:
    """The field, if it is one of two softmax sides.

    Args:
        field: The field.
        argument: What the user gave it as, or made it with.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(field, SoftmaxField):
        raise ArgumentError(argument, type(field).__name__, "a field of two softmax sides")
    return field


def worst(reports: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The largest of each number in several reports.

    Example:
        >>> worst([{"half_steps": 3.0}, {"half_steps": 5.0, "marginal_error": 0.01}])
        {'half_steps': 5.0, 'marginal_error': 0.01}
    """
    row: dict[str, float] = {}
    for name, value in (pair for report in reports for pair in report.items()):
        row[name] = max(value, row.get(name, value))
    return row


@dataclass(frozen=True, eq=False)
class Side:
    """A cloud with its bias, and how it is reduced.

    Attributes:
        points: The cloud, ``(…, M, d)``.
        bias: β_j = log b_j + g_j/τ, float64 ``(…, M)``.
        cost: The ground cost.
        tau: Temperature, in the unit of the cost.
        backend: Engine, or ``"auto"``.
    """

    points: Tensor
    bias: Tensor
    cost: Cost
    tau: float | Tensor
    backend: str | Engine = "auto"

    @property
    def taus(self) -> Tensor:
        """The temperature of each problem, float64 ``(…, 1)``."""
        return torch.as_tensor(self.tau, dtype=torch.float64, device=self.bias.device)[..., None]

    def kernel(self, z: Tensor, mask_self: bool = False) -> GibbsKernel:
        """The Gibbs kernel between queries ``z (…, N, d)`` and the cloud."""
        return gibbs_kernel(
            z,
            self.points,
            self.cost,
            self.tau,
            mask_self=mask_self,
            backend=self.backend,
            alive=(None, self.bias > -torch.inf),
        )

    def pull(
        self, z: Tensor, velocity: str, kernel: GibbsKernel, guess: Tensor | None = None
    ) -> Tensor:
        """T(z) − z, or −Σ_j softmax_j ∇_z C(z, y_j) for ``velocity="gradient"``; ``(…, N, d)``.

        Args:
            z: Queries, ``(…, N, d)``.
            velocity: Which of the two.
            kernel: The Gibbs kernel between ``z`` and the cloud.
            guess: Of the log-mass at ``z``, which makes it cheaper.
        """
        if velocity == "gradient":
            return -kernel.mean_cost_gradient(self.bias, guess)
        pull = kernel.barycentre(self.bias, guess=guess) - z
        empty = kernel.empty_rows(self.bias)  # nothing left to be pulled by
        return pull if empty is None else pull.masked_fill(empty[..., None], 0)


# Masses m⁺, m⁻ at the queries of two kernels, float64 ``(…, N)`` each; whether the queries are the
# particles comes last.
Masses = Callable[["SoftmaxField", GibbsKernel, GibbsKernel, bool], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class JointRows:
    """Rows of the joint coupling A = K/√(r c) of Deng et al., Algorithm 2, with masses s⁺s⁻.

    Every row counts at least once in its own columns, as it does in the algorithm, so that no pair
    has more than the root of its column's multiplicity: a query that was no row of the fit, or a
    particle of little weight, adds what is missing of its kernel values to the column sums c.

    Attributes:
        data: Log multiplicities of the data cloud, float64 ``(…, M)``, for the row sums r.
        model: The same for the model cloud.
        particles: Multiplicities of the particles, ``(…, N)``.
        floor: The least a pair may have.
    """

    data: Tensor
    model: Tensor
    particles: Tensor
    floor: float = 0.0

    def __call__(
        self, field: SoftmaxField, data: GibbsKernel, model: GibbsKernel, at_particles: bool
    ) -> tuple[Tensor, Tensor]:
        """The masses s⁺s⁻ at the queries of the kernels, twice."""
        mass, _, _ = self.sides(field, data, model, at_particles)
        return mass, mass

    def sides(
        self, field: SoftmaxField, data: GibbsKernel, model: GibbsKernel, at_particles: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mass s⁺s⁻ ``(…, N)`` and the barycentres of A on data and model cloud."""
        # Row sums over data, particles and extra negatives together.
        shift = torch.logaddexp(data.log_mass(self.data), model.log_mass(self.model)) / 2
        missing = (1 - self.particles).clamp_min(0) if at_particles else torch.ones_like(shift)
        log_mass, means = torch.zeros_like(shift), list[Tensor]()
        for kernel, bias, counts in (
            (data, field.data.bias, self.data),
            (model, field.model.bias, self.model),
        ):
            columns = (2 * (counts - bias)).masked_fill(torch.isneginf(bias), 0)
            # In units of the most a pair may have.
            unit = counts.amax(-1, keepdim=True).clamp_min(0) / 2
            mass, mean = kernel.coupling(
                bias,
                shift + unit,
                columns=columns,
                missing=missing,
                floor=0.0 if self.floor == 0 else self.floor * (-unit).exp(),
            )
            # A mass of 0 has no logarithm to be differentiated; a denormal one does for it.
            log_mass = log_mass + unit + mass.clamp_min(torch.finfo(mass.dtype).tiny).log()
            means.append(mean)
        return cut(log_mass, self.data, self.model).exp(), means[0], means[1]


def cut(log_mass: Tensor, data: Tensor, model: Tensor) -> Tensor:
    """The logarithm of a mass s⁺s⁻, cut at the product of both sums of multiplicities.

    Where every point is a row of its own column it is at most the root of that; above it are
    queries where hardly a particle is, and particles of next to no weight. Points of weight 0, with
    which a batch may be padded, do not count. Beyond `LARGEST` it is cut in any case.

    Args:
        log_mass: ``(…, N)``.
        data: Log multiplicities of the data, ``(…, M)``.
        model: The same for the model cloud.
    """
    most = data.logsumexp(-1, keepdim=True) + model.logsumexp(-1, keepdim=True)
    return log_mass.minimum(most.clamp_max(LARGEST))


@dataclass(frozen=True)
class RowMasses:
    """What rows of relaxed couplings weigh, relative to their weights: exp(−f/ρ).

    With f = −λτ·log-mass that is a power of the mass, which is known anywhere.

    Attributes:
        share: The power, 1 − λ = τ/(ρ + τ), ``(…, 1)``.
    """

    share: Tensor

    def __call__(
        self, field: SoftmaxField, data: GibbsKernel, model: GibbsKernel, at_particles: bool
    ) -> tuple[Tensor, Tensor]:
        """The masses m⁺, m⁻ at the queries of the kernels."""
        guesses = field.guesses(at_particles)
        # A row holds no more than the mass of all, 1 where no cost is negative. So only points of
        # next to no weight, or beside data far from all particles, are above the number of pairs
        # that have weight.
        particles = (field.couplings[0].problem.a > 0).sum(-1, keepdim=True)
        masses = []
        share = self.share.clone()  # a tensor made in inference mode cannot enter a graph
        sides = ((data, field.data), (model, field.model))
        for (kernel, side), guess in zip(sides, guesses, strict=True):
            mass = kernel.log_mass(side.bias, guess)
            mass = mass.masked_fill(torch.isneginf(mass), 0)  # a row without atoms pulls nowhere
            pairs = particles * (side.bias > -torch.inf).sum(-1, keepdim=True)
            masses.append((share * mass).minimum(pairs.to(mass.dtype).log()).exp())
        return masses[0], masses[1]


@dataclass(frozen=True, eq=False)
class SoftmaxField(Field):
    """A field of two softmax sides.

    Attributes:
        particles: The particles it was fitted on, ``(…, N, d)``.
        data: Attraction side.
        model: Repulsion side: the particles, or other draws, then extra negatives if there are any.
        velocity: ``"barycentric"`` or ``"gradient"``.
        mask_self: Whether a particle is excluded from its own repulsion.
        dtype: Of the drift; the computation is in float32 at least.
        masses: The masses m±, or None where they are 1.
        couplings: Data and model coupling, where the field has marginals to speak of.
        kernels: Data and model kernel at the particles, where the fit has built them.

    Example:
        >>> import torch, keodrift as kd
        >>> x, y = torch.zeros(4, 2), torch.ones(5, 2)
        >>> kd.SinkhornDrift(tau=1.0).fit(x, y)(torch.zeros(1, 2))
        tensor([[1., 1.]])
    """

    particles: Tensor
    data: Side
    model: Side
    velocity: str = "barycentric"
    mask_self: bool = False
    dtype: torch.dtype = torch.float32
    masses: Masses | None = None
    couplings: tuple[Coupling, ...] = ()
    kernels: tuple[GibbsKernel, GibbsKernel] | None = None

    def __call__(self, z: Tensor | None = None) -> Tensor:
        """The drift at ``z (…, K, d)``, or at the particles.

        Args:
            z: Any points, with the batch axes of the particles; the result is differentiable in
                them and no pair is masked. By default the particles themselves, where
                ``mask_self`` applies and no graph is kept.

        Returns:
            ``(…, K, d)``, in the dtype of the particles (of ``z`` where it is given).

        Raises:
            ArgumentError: ``z`` is not a finite floating-point cloud of the field's dimension,
                batch axes and device.
        """
        if z is not None:
            queries = check_queries("z", z, self.particles)
            kernels = self.data.kernel(queries), self.model.kernel(queries)
            return saturated(self._at(queries, *kernels), z.dtype)
        x = self.particles
        with torch.no_grad():
            kernels = self.kernels or (self.data.kernel(x), self.model.kernel(x, self.mask_self))
            return saturated(self._at(x, *kernels, at_particles=True), self.dtype)

    def _at(
        self, z: Tensor, data: GibbsKernel, model: GibbsKernel, *, at_particles: bool = False
    ) -> Tensor:
        guesses = self.guesses(at_particles)
        towards = self.data.pull(z, self.velocity, data, guesses[0])
        away = self.model.pull(z, self.velocity, model, guesses[1])
        if self.masses is None:
            return towards - away
        plus, minus = (
            mass[..., None].to(towards.dtype)
            for mass in self.masses(self, data, model, at_particles)
        )
        # Equal masses factor out, however large they are.
        return plus * (towards - away) + (plus - minus) * away

    def guesses(self, at_particles: bool) -> list[Tensor | None]:
        """Guesses of the log-masses: at the particles the couplings know them near enough."""
        known = [coupling.log_mass for coupling in self.couplings] if at_particles else []
        return known or [None, None]


@dataclass(frozen=True, eq=False)
class FlooredField(SoftmaxField):
    """Deng et al.'s Algorithm 2 as released: the joint coupling is raised to a floor pointwise.

    Its masses are `JointRows`, whose barycentres have that floor too.
    """

    def _at(
        self, z: Tensor, data: GibbsKernel, model: GibbsKernel, *, at_particles: bool = False
    ) -> Tensor:
        rows: Any = self.masses
        mass, towards, away = rows.sides(self, data, model, at_particles)
        return mass[..., None].to(towards.dtype) * (towards - away)


def saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in a dtype; what half precision cannot hold becomes the largest it can."""
    limit = torch.finfo(dtype).max
    if limit < torch.finfo(values.dtype).max:
        values = values.clamp(-limit, limit)
    return values.to(dtype)
