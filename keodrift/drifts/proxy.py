"""The Sinkhorn proxy: Algorithm 2 of drifting with the rows of data and model normalised apart."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from keodrift.drifts.clouds import Clouds, count
from keodrift.drifts.softmax import SoftmaxDrift, log_columns
from keodrift.errors import OptionError
from keodrift.fields import Field, SoftmaxField, cut
from keodrift.reductions import GibbsKernel


@dataclass(frozen=True, eq=False)
class ProxyMasses:
    """Masses s⁺s⁻, row sums of A = K/√(r c) with r⁺ over the data and r⁻ over the model cloud.

    Attributes:
        data: Log multiplicities of the data, float64 ``(…, M)``.
        model: The same for the model cloud.
        scale: Logarithm of what A⁺ is multiplied by, ``(…, 1)``.
    """

    data: Tensor
    model: Tensor
    scale: Tensor

    def __call__(
        self, field: SoftmaxField, data: GibbsKernel, model: GibbsKernel, at_particles: bool
    ) -> tuple[Tensor, Tensor]:
        """The masses at the queries of the kernels, twice."""
        total = self.scale
        sides = ((data, field.data.bias, self.data), (model, field.model.bias, self.model))
        for kernel, bias, counts in sides:
            rows = kernel.log_mass(counts)
            rows = rows.masked_fill(torch.isneginf(rows), 0)  # a lone particle, masked, has none
            total = total + kernel.log_mass(bias) - rows / 2
        mass = cut(total, self.data, self.model).exp()
        return mass, mass


@dataclass(frozen=True)
class SinkhornProxyDrift(SoftmaxDrift):
    """One Sinkhorn sweep's worth of Algorithm 2: geometric means of row and column softmax.

    As `TwoSidedDrift` with ``form="joint"``, but the rows of the data and those of the model cloud
    are normalised apart, so that with ``mask_self=False`` it vanishes where q = p. Its masses s⁺s⁻
    make it no gradient: it turns, and like the score field it does not see mass that has to cross
    a gap. Away from the particles A takes the column sums of the fit; where hardly a particle is,
    its mass is cut at N·M.

    Attributes:
        population_scaling: Multiplies A⁺ by √(N/M), which takes the batch sizes out of its row
            sums; without, the field grows like √(M/N). Either way it grows like √(K/N) with K
            other draws of the model (``model=``).

    Raises:
        TemperatureError: τ is not a number from 1e-30 to 1e30, or, at a fit, C/τ overflows.
        OptionError: Another option is none of its values.

    Source: "On the Wasserstein gradient flow interpretation of drifting models", arXiv 2605.05118,
    section 3.2 and Appendix B.

    Example:
        >>> import torch, keodrift as kd
        >>> drift = kd.SinkhornProxyDrift(tau=1.0, mask_self=False, population_scaling=True)
        >>> drift(torch.zeros(1, 2), torch.ones(3, 2))
        tensor([[1., 1.]])
    """

    _: KW_ONLY
    population_scaling: bool = False

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        super().__post_init__()
        if not isinstance(self.population_scaling, bool):
            raise OptionError("population_scaling", repr(self.population_scaling), "True or False")

    def _fit(self, clouds: Clouds, start: Field | None) -> SoftmaxField:
        kernels = self.kernels(clouds)
        a, b, c = clouds.multiplicities
        data, model = log_columns(kernels, a.log())
        scale = (count(a) / count(b)).log() / 2 if self.population_scaling else a.new_zeros(1)
        masses = ProxyMasses(b.log(), c.log(), scale)
        biases = b.log() - data / 2, c.log() - model / 2
        return self.field(clouds, *biases, masses=masses, kernels=kernels)
