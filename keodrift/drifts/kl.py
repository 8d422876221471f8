"""Drifts by scores of Parzen densities: their difference, and the flow of their divergence."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from keodrift.checks import check_choice, check_positive, check_queries
from keodrift.drifts.clouds import Clouds
from keodrift.drifts.draws import check_generator, normals
from keodrift.drifts.softmax import SoftmaxDrift
from keodrift.errors import OptionError
from keodrift.fields import Field, SoftmaxField, saturated
from keodrift.reductions import GibbsKernel


@dataclass(frozen=True, eq=False)
class EvenMasses:
    """Masses that are the same everywhere.

    Attributes:
        value: The mass, float64 ``(…, 1)``.
    """

    value: Tensor

    def __call__(
        self, field: SoftmaxField, data: GibbsKernel, model: GibbsKernel, at_particles: bool
    ) -> tuple[Tensor, Tensor]:
        """The mass, twice."""
        value = self.value.clone()  # a tensor made in inference mode cannot enter a graph
        return value, value


@dataclass(frozen=True, eq=False)
class SmoothedField(Field):
    """The mean of a field around each point, over the same displacements for all points.

    So it is a gradient where the field is one.

    Attributes:
        particles: The particles it was fitted on, ``(…, N, d)``.
        base: The field.
        noise: The displacements, ``(…, S, d)``.
        dtype: Of the drift.
    """

    particles: Tensor
    base: Field
    noise: Tensor
    dtype: torch.dtype

    def __call__(self, z: Tensor | None = None) -> Tensor:
        """The mean at ``z (…, K, d)``, in which it is differentiable, or at the particles.

        Raises:
            ArgumentError: As for the field.
        """
        at = self.particles if z is None else check_queries("z", z, self.particles)
        around = at.unsqueeze(-3) + self.noise.to(at).unsqueeze(-2)
        met = self.base(around.flatten(-3, -2)).unflatten(-2, around.shape[-3:-1])
        return saturated(met.mean(-3), self.dtype if z is None else z.dtype)


@dataclass(frozen=True)
class KLDrift(SoftmaxDrift):
    """Scores of Parzen densities p_τ, q_τ of data and model under the Gaussian kernel exp(−C/τ).

    The difference of scores, ``form="score"``, is what is usually called the flow of the
    Kullback-Leibler divergence KL(q_τ ‖ p_τ). That flow itself, ``form="flow"``, is its mean
    E ∇log p_τ(x + n) − ∇log q_τ(x + n) over draws n of the kernel, N(0, τI) for ½‖x−y‖²: the two
    agree where the difference is affine, as between Gaussians, and at small τ. The flow is
    curl-free as well, and smoother. Either vanishes where q = p, and neither sees mass that has to
    cross a gap.

    Attributes:
        cost: A quadratic one: ``"half_squared"`` (default; τ is the kernel's variance) or
            ``"squared"`` (τ is twice the variance).
        mask_self: False by default: q_τ counts the particle itself. With True, the score without
            it; the flow has no such form.
        form: ``"score"`` or ``"flow"``.
        masses: ``"unit"`` (default): the scores times the kernel's variance, a length, as other
            drifts are; for ``form="score"`` that is `OneSidedDrift`. ``"gradient"``: the scores
            themselves. With ``velocity="gradient"`` unit masses give the scores times τ, which for
            ``"squared"`` is twice the variance.
        samples: How many n the mean runs over, in pairs ±n, so an even number; the error falls with
            its root, and time and memory grow with it.
        generator: Where they are drawn: a seed (the same n at every fit, 0 by default) or a
            `torch.Generator`, from which every fit draws others.

    Raises:
        TemperatureError: τ is not a number from 1e-30 to 1e30, or, at a fit, C/τ overflows.
        OptionError: Another option is none of its values, the cost is not quadratic, or a flow is
            masked.

    Source: "On the Wasserstein gradient flow interpretation of drifting models", arXiv 2605.05118,
    section 2.3 and Appendix A.

    Example:
        >>> import torch, keodrift as kd
        >>> kd.KLDrift(tau=1.0)(torch.zeros(1, 2), torch.ones(3, 2))
        tensor([[1., 1.]])
    """

    _: KW_ONLY
    mask_self: bool = False
    form: str = "score"
    masses: str = "unit"
    samples: int = 64
    generator: int | torch.Generator = 0

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        super().__post_init__()
        check_choice("form", self.form, ("score", "flow"))
        check_choice("masses", self.masses, ("unit", "gradient"))
        check_positive("samples", self.samples, integer=True)
        if self.samples % 2:
            raise OptionError("samples", self.samples, "an even number, for pairs ±n")
        check_generator(self.generator)
        if self.cost.curvature is None or self.cost.lift is not None:
            raise OptionError("cost", repr(self.cost.name), "'half_squared' or 'squared'")
        if self.form == "flow" and self.mask_self:
            raise OptionError("mask_self", "True", "False, or form='score'")

    def _fit(self, clouds: Clouds, start: Field | None) -> Field:
        tau = torch.as_tensor(self.tau, dtype=torch.float64, device=clouds.x.device)[..., None]
        masses = None
        if self.masses == "gradient":
            slope = self.cost.curvature if self.velocity == "barycentric" else 1.0
            masses = EvenMasses(slope / tau)
        field = self.field(clouds, clouds.b.log(), clouds.c.log(), masses=masses)
        if self.form == "score":
            return field
        half = normals(self.generator, self.samples // 2, clouds.x.shape[-1], like=clouds.x)
        noise = torch.cat([half, -half])
        spread = (tau[..., None] / self.cost.curvature).sqrt()
        return SmoothedField(clouds.x, field, spread * noise, clouds.dtype)
