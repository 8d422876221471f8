"""Flows of f-divergences whose critic is held in a reproducing kernel space: KALE, chi-square."""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from keodrift.checks import check_choice, check_positive, check_queries
from keodrift.drifts.clouds import Clouds
from keodrift.drifts.dual import Dual, Slope, Solution
from keodrift.drifts.softmax import SoftmaxDrift
from keodrift.errors import ConvergenceWarning, CostError, OptionError, users_stacklevel
from keodrift.fields import Field, SoftmaxField, saturated
from keodrift.reductions import GibbsKernel, gibbs_kernel


@dataclass(frozen=True)
class KernelMasses:
    """Masses (weight/τ)·exp ℓ, with which the pulls add up to −∇ of a sum of kernels.

    Attributes:
        weight: What the sum is multiplied by.
    """

    weight: float

    def __call__(
        self, field: SoftmaxField, data: GibbsKernel, model: GibbsKernel, at_particles: bool
    ) -> tuple[Tensor, Tensor]:
        """The masses m⁺, m⁻ at the queries of the kernels."""
        rate = self.weight / field.data.taus
        plus, minus = data.log_mass(field.data.bias), model.log_mass(field.model.bias)
        return rate * plus.exp(), rate * minus.exp()


@dataclass(frozen=True, eq=False)
class KernelWitnessField(SoftmaxField):
    """V = −∇w of a witness that is a sum of kernels.

    Attributes:
        weight: The witness is weight·(Σ_i c_i k(z_i, ·) − Σ_j α_j k(y_j, ·)); the model side holds
            its positive terms, the data side its negative ones.
        solution: What was solved to find α.
    """

    _: KW_ONLY
    weight: float
    solution: Solution

    def report(self) -> dict[str, float]:
        """Passes, and the largest bound on the witness' error."""
        error = float(self.solution.error.max())
        return {"passes": self.solution.passes, "witness_error": error}

    def witness(self, z: Tensor) -> Tensor:
        """The witness at ``z (…, K, d)``, differentiable in it; ``(…, K)``.

        Raises:
            ArgumentError: As for the field itself.
        """
        queries = check_queries("z", z, self.particles)
        plus, minus = (
            side.kernel(queries).log_mass(side.bias).exp() for side in (self.model, self.data)
        )
        return saturated(self.weight * (plus - minus), z.dtype)

    @property
    def converged(self) -> Tensor:
        """Whether the witness is within ``tol``, ``(…,)`` bool."""
        return self.solution.converged

    @property
    def reason(self) -> str:
        """Why the solver ended, in words."""
        return self.solution.reason


@dataclass(frozen=True)
class _DualDrift(SoftmaxDrift):
    _: KW_ONLY
    lam: float = 0.1
    tol: float = 1e-3
    max_passes: int = 2000
    mask_self: bool = False
    velocity: str = "gradient"

    slopes: ClassVar[tuple[Slope, Slope]]
    factor: ClassVar[int]

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        super().__post_init__()
        check_positive("lam", self.lam)
        check_positive("tol", self.tol)
        check_positive("max_passes", self.max_passes, integer=True)
        check_choice("velocity", self.velocity, ("gradient",))
        if self.mask_self:
            raise OptionError("mask_self", True, "False: a point does not move its own kernel")

    def _tried_on(self, *clouds: Tensor) -> SoftmaxDrift:
        tried = super()._tried_on(*clouds)
        if not tried.cost.symmetric:
            needs = "a symmetric cost, whose kernel exp(−C/τ) is positive definite"
            raise CostError("cost", f"'{tried.cost.name}', which is not symmetric", needs)
        return tried

    def _fit(self, clouds: Clouds, start: Field | None) -> KernelWitnessField:
        y, z, b, c = clouds.y, clouds.z, clouds.b, clouds.c
        kernel, cross = (
            gibbs_kernel(
                y, points, self.cost, self.tau, backend=self.backend, alive=(b > 0, weights > 0)
            )
            for points, weights in ((y, b), (z, c))
        )
        unit = self.factor * (1 + self.lam)
        dual = Dual(kernel, cross.log_mass(c.log()).exp(), b, self.lam, self.slopes, unit)
        guess = torch.zeros_like(b)
        if isinstance(start, KernelWitnessField):
            # Of evenly weighted data none has a density ratio above their number.
            guess = (start.witness(y).double() / unit).clamp(max=math.log(y.shape[-2]))
        solution = dual.solve(guess, self.tol, self.max_passes)
        if not bool(solution.converged.all()):
            warnings.warn(
                f"{type(self).__name__} {solution.reason}; raise max_passes, tol or lam, or use "
                "float64.",
                ConvergenceWarning,
                stacklevel=users_stacklevel(),
            )
        attracting, repelling = solution.coefficients.clamp_min(0), -solution.coefficients
        if bool((repelling > 0).any()):  # data where h < −1 repel in the chi-square flow
            z, c = torch.cat([z, y], -2), torch.cat([c, repelling.clamp_min(0)], -1)
        weight = unit / self.lam
        return KernelWitnessField(
            clouds.x,
            self.side(y, attracting.log()),
            self.side(z, c.log()),
            velocity=self.velocity,
            dtype=clouds.dtype,
            masses=KernelMasses(weight),
            weight=weight,
            solution=solution,
        )


@dataclass(frozen=True)
class KALEDrift(_DualDrift):
    """The flow of KALE, a relaxed KL(q‖p) that is finite whatever the supports.

    KALE = (1 + λ) max over h of 1 + E_q h − E_p e^h − (λ/2)‖h‖², with the norm of the kernel
    exp(−C/τ), and V = −(1 + λ)∇h*. λ → 0 is the KL divergence (as far as the kernel tells), λ → ∞
    the MMD flow with the same kernel, V = −∇(E_q k − E_p k).

    Attributes:
        lam: λ, without unit: the smaller, the closer to KL, the longer the solve.
        tol: Bound on the error of the witness (1 + λ)h* at any point; its slope, the drift, is
            then right to about ``tol``/√τ in the half squared cost.
        max_passes: Cap on the products with a kernel matrix; reaching it warns
            (`ConvergenceWarning`).
        mask_self: False: a point does not move its own kernel.
        velocity: ``"gradient"``: the flow is one.

    The rest as for `SoftmaxDrift`; the cost has to be symmetric and its kernel positive definite,
    as it is for those with names. ``start=`` carries the witness over.

    Raises:
        TemperatureError: τ is not a number from 1e-30 to 1e30, or, at a fit, C/τ overflows.
        OptionError: Another option is none of its values, or a mask is asked for.

    Source: Glaser, Arbel and Gretton (2021), "KALE flow"; arXiv 2605.05118, eq. 54.

    Example:
        >>> import torch, keodrift as kd
        >>> field = kd.KALEDrift(tau=1.0, lam=1.0).fit(torch.zeros(1, 2), torch.ones(5, 2))
        >>> field(), bool(field.converged)
        (tensor([[0.5226, 0.5226]]), True)
    """

    slopes: ClassVar[tuple[Slope, Slope]] = (torch.exp, torch.exp)
    factor: ClassVar[int] = 1


def _one_plus(h: Tensor) -> Tensor:
    return 1 + h


@dataclass(frozen=True)
class ChiSquareDrift(_DualDrift):
    """The flow of the (de-)regularised MMD, which lies between MMD² and the chi-square divergence.

    DrMMD = (1 + λ)‖(Σ_p + λ)^−½ (μ_q − μ_p)‖² with mean embeddings μ and Σ_p = E_p k ⊗ k of the
    kernel exp(−C/τ), and V = −2(1 + λ)∇h with h = (Σ_p + λ)^−1 (μ_q − μ_p), one linear system.
    λ → 0 is the chi-square divergence (as far as the kernel tells), λ → ∞ the flow of MMD².

    Arguments as for `KALEDrift`, of which this is the quadratic twin: φ(h) = h + h²/2 in the place
    of e^h.

    Raises:
        TemperatureError: τ is not a number from 1e-30 to 1e30, or, at a fit, C/τ overflows.
        OptionError: Another option is none of its values, or a mask is asked for.

    Source: Chen, Mustafi, Glaser, Korba, Gretton and Sriperumbudur (2025), "(De)-regularized
    maximum mean discrepancy gradient flow".

    Example:
        >>> import torch, keodrift as kd
        >>> kd.ChiSquareDrift(tau=1.0, lam=1.0)(torch.zeros(1, 2), torch.ones(5, 2))
        tensor([[1.0064, 1.0064]])
    """

    slopes: ClassVar[tuple[Slope, Slope]] = (_one_plus, torch.ones_like)
    factor: ClassVar[int] = 2
