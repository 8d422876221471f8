"""Drift fields: a data side and a model side, V(z) = m⁺(T⁺(z) − z) − m⁻(T⁻(z) − z).

Each side is a cloud with a bias (one formula for every field), so a field can be evaluated
anywhere; what differs between the methods is how the biases and the masses m± come about.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from keodrift.checks import check_queries
from keodrift.costs import Cost
from keodrift.multilevel import Potential
from keodrift.reductions import GibbsKernel, gibbs_kernel
from keodrift.sinkhorn import Coupling


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
    tau: float
    backend: str = "auto"

    def kernel(self, z: Tensor, mask_self: bool = False) -> GibbsKernel:
        """The Gibbs kernel between queries ``z (…, N, d)`` and the cloud."""
        return gibbs_kernel(
            z, self.points, self.cost, self.tau, mask_self=mask_self, backend=self.backend
        )

    def pull(
        self, z: Tensor, velocity: str, kernel: GibbsKernel, shift: Tensor | None = None
    ) -> Tensor:
        """T(z) − z, or −Σ_j softmax_j ∇_z C(z, y_j) for ``velocity="gradient"``; ``(…, N, d)``.

        Args:
            z: Queries, ``(…, N, d)``.
            velocity: Which of the two.
            kernel: The Gibbs kernel between ``z`` and the cloud.
            shift: A guess of the log-mass at ``z``, which makes it cheaper.
        """
        if velocity == "gradient":
            return -kernel.mean_cost_gradient(self.bias)
        pull = kernel.barycentre(self.bias, shift=shift) - z
        empty = kernel.empty_rows(self.bias)  # nothing left to be pulled by
        return pull if empty is None else pull.masked_fill(empty[..., None], 0)


@dataclass(frozen=True)
class JointMass:
    """The masses m⁺ = m⁻ = s⁺s⁻ of Deng et al., Algorithm 2.

    Attributes:
        data: Log multiplicities of the data cloud, float64 ``(…, M)``, for the row sums r.
        model: The same for the model cloud.
    """

    data: Tensor
    model: Tensor

    def log_rows(self, data: GibbsKernel, model: GibbsKernel) -> Tensor:
        """Log r(z): row sums over data, particles and extra negatives together, ``(…, N)``."""
        return torch.logaddexp(data.log_mass(self.data), model.log_mass(self.model))


@dataclass(frozen=True)
class DriftField:
    """A fitted drift, callable at any point.

    Attributes:
        particles: The particles it was fitted on, ``(…, N, d)``.
        data: Attraction side.
        model: Repulsion side: the particles, then extra negatives if there are any.
        velocity: ``"barycentric"`` or ``"gradient"``.
        mask_self: Whether a particle is excluded from its own repulsion.
        dtype: Of the drift; the computation is in float32 at least.
        mass: The masses m±, or None where they are 1.
        floor: Pointwise floor of the joint coupling (released Algorithm 2); 0 for none.
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
    mass: JointMass | None = None
    floor: float = 0.0
    couplings: tuple[Coupling, Coupling] | None = None
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
        if z is None:
            with torch.no_grad():
                return self._at_particles().to(self.dtype)
        queries = check_queries("z", z, self.particles)
        kernels = self.data.kernel(queries), self.model.kernel(queries)
        return self._at(queries, *kernels).to(z.dtype)

    def _at_particles(self) -> Tensor:
        x = self.particles
        kernels = self.kernels or (self.data.kernel(x), self.model.kernel(x, self.mask_self))
        if self.couplings is None:
            return self._at(x, *kernels)
        # The couplings know the log-masses near enough.
        shifts = (None if c.row is None else -c.row for c in self.couplings)
        return self._at(x, *kernels, *shifts)

    def _at(
        self,
        z: Tensor,
        data: GibbsKernel,
        model: GibbsKernel,
        data_shift: Tensor | None = None,
        model_shift: Tensor | None = None,
    ) -> Tensor:
        if self.mass is not None and self.floor > 0:
            return self._floored(self.mass, data, model)
        drift = self.data.pull(z, self.velocity, data, data_shift)
        drift = drift - self.model.pull(z, self.velocity, model, model_shift)
        if self.mass is None:
            return drift
        columns = data.log_mass(self.data.bias) + model.log_mass(self.model.bias)
        mass = (columns - self.mass.log_rows(data, model)).exp()
        return mass[..., None].to(drift.dtype) * drift

    def _floored(self, mass: JointMass, data: GibbsKernel, model: GibbsKernel) -> Tensor:
        shift = mass.log_rows(data, model) / 2
        s_data, t_data = data.floored(self.data.bias, shift, self.floor)
        s_model, t_model = model.floored(self.model.bias, shift, self.floor)
        return (s_data * s_model)[..., None].to(t_data.dtype) * (t_data - t_model)

    @cached_property
    def iterations(self) -> int:
        """Half-steps done on the slower of the two problems; 1 for a one-sided field."""
        return 1 if self.couplings is None else max(c.iterations for c in self.couplings)

    @cached_property
    def marginal_error(self) -> Tensor | None:
        """Larger L1 error of the two couplings' inexact marginals, ``(…,)``; None without any."""
        if self.couplings is None:
            return None
        return torch.maximum(*(c.marginal_error for c in self.couplings))

    @property
    def converged(self) -> Tensor | None:
        """Whether both couplings reached their tolerance, ``(…,)`` bool; None without any."""
        if self.couplings is None:
            return None
        return self.couplings[0].converged & self.couplings[1].converged

    @property
    def potentials(self) -> tuple[Potential, Potential] | None:
        """Potentials of the data and the model coupling as functions of points, in units of τ.

        On new clouds they are a warm start; None where there are none to carry.
        """
        if self.couplings is None:
            return None
        side, x = self.data, self.particles

        def function(coupling: Coupling) -> Potential:
            def at(points: Tensor) -> Tensor:
                kernel = gibbs_kernel(points, x, side.cost, side.tau, backend=side.backend)
                return coupling.atoms_potential(kernel)

            return at

        data, model = self.couplings
        return function(data), function(model)
