"""Drift fields: V at any point, and on which particles it was fitted.

Softmax fields have a data side and a model side, V(z) = m⁺(T⁺(z) − z) − m⁻(T⁻(z) − z). Each side is
a cloud with a bias (one formula for every field); what differs between the methods is how the
biases and the masses m± come about.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from keodrift.checks import check_queries
from keodrift.costs import Cost
from keodrift.reductions import Engine, GibbsKernel, gibbs_kernel
from keodrift.transport import Coupling


class Field(ABC):
    """A fitted drift, callable at any point.

    Attributes:
        particles: The particles it was fitted on, ``(…, N, d)``.
        couplings: What was solved to find it; empty where nothing was.
    """

    particles: Tensor
    couplings: tuple[Coupling, ...] = ()

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


@dataclass(frozen=True)
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

    def kernel(self, z: Tensor, mask_self: bool = False) -> GibbsKernel:
        """The Gibbs kernel between queries ``z (…, N, d)`` and the cloud."""
        return gibbs_kernel(
            z, self.points, self.cost, self.tau, mask_self=mask_self, backend=self.backend
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
            return -kernel.mean_cost_gradient(self.bias)
        pull = kernel.barycentre(self.bias, guess=guess) - z
        empty = kernel.empty_rows(self.bias)  # nothing left to be pulled by
        return pull if empty is None else pull.masked_fill(empty[..., None], 0)


# Masses m⁺, m⁻ at the queries of two kernels, float64 ``(…, N)`` each.
Masses = Callable[["SoftmaxField", GibbsKernel, GibbsKernel], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class JointMass:
    """The masses m⁺ = m⁻ = s⁺s⁻ of Deng et al., Algorithm 2.

    Attributes:
        data: Log multiplicities of the data cloud, float64 ``(…, M)``, for the row sums r.
        model: The same for the model cloud.
    """

    data: Tensor
    model: Tensor

    def __call__(
        self, field: SoftmaxField, data: GibbsKernel, model: GibbsKernel
    ) -> tuple[Tensor, Tensor]:
        """s⁺s⁻ at the queries of the kernels, twice."""
        columns = data.log_mass(field.data.bias) + model.log_mass(field.model.bias)
        mass = (columns - self.log_rows(data, model)).exp()
        return mass, mass

    def log_rows(self, data: GibbsKernel, model: GibbsKernel) -> Tensor:
        """Log r(z): row sums over data, particles and extra negatives together, ``(…, N)``."""
        return torch.logaddexp(data.log_mass(self.data), model.log_mass(self.model))


@dataclass(frozen=True)
class SoftmaxField(Field):
    """A field of two softmax sides.

    Attributes:
        particles: The particles it was fitted on, ``(…, N, d)``.
        data: Attraction side.
        model: Repulsion side: the particles, then extra negatives if there are any.
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
            return self._at(queries, *kernels).to(z.dtype)
        x = self.particles
        with torch.no_grad():
            kernels = self.kernels or (self.data.kernel(x), self.model.kernel(x, self.mask_self))
            # The couplings know the log-masses near enough.
            guesses = (None if c.row is None else -c.row for c in self.couplings)
            return self._at(x, *kernels, *guesses).to(self.dtype)

    def _at(
        self,
        z: Tensor,
        data: GibbsKernel,
        model: GibbsKernel,
        data_guess: Tensor | None = None,
        model_guess: Tensor | None = None,
    ) -> Tensor:
        towards = self.data.pull(z, self.velocity, data, data_guess)
        away = self.model.pull(z, self.velocity, model, model_guess)
        if self.masses is None:
            return towards - away
        plus, minus = (mass[..., None].to(towards.dtype) for mass in self.masses(self, data, model))
        # Equal masses factor out, however large they are.
        return plus * (towards - away) + (plus - minus) * away


@dataclass(frozen=True)
class FlooredField(SoftmaxField):
    """Deng et al.'s Algorithm 2 as released: the joint coupling is raised to a floor pointwise.

    Attributes:
        rows: Gives the row sums that the coupling is divided by.
        floor: The least a pair may have.
    """

    _: KW_ONLY
    rows: JointMass
    floor: float

    def _at(self, z: Tensor, data: GibbsKernel, model: GibbsKernel, *_: Tensor | None) -> Tensor:
        shift = self.rows.log_rows(data, model) / 2
        s_data, t_data = data.floored(self.data.bias, shift, self.floor)
        s_model, t_model = model.floored(self.model.bias, shift, self.floor)
        return (s_data * s_model)[..., None].to(t_data.dtype) * (t_data - t_model)
