"""Drifts from kernels normalised once: one-sided, two-sided split, two-sided joint."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from keodrift.checks import check_choice, check_positive
from keodrift.drifts.base import Drift, Problem, count
from keodrift.errors import OptionError
from keodrift.fields import DriftField, JointMass
from keodrift.reductions import GibbsKernel


@dataclass(frozen=True)
class OneSidedDrift(Drift):
    """Softmax over the data minus softmax over the model: g = 0 on both sides.

    Equals the first Sinkhorn half-step without mask. It vanishes where q = p, but not only there.
    Arguments as for `Drift`; particles are masked from their own repulsion by default.

    Source: Deng et al. (2026), eq. 8; "Sinkhorn drifting", arXiv 2603.12366, eq. 3.

    Example:
        >>> import torch, keodrift as kd
        >>> kd.OneSidedDrift(tau=0.1)(torch.zeros(1, 2), torch.ones(3, 2))
        tensor([[1., 1.]])
    """

    def _fit(self, problem: Problem, start: DriftField | None) -> DriftField:
        return self.field(problem, problem.b.log(), problem.c.log())


@dataclass(frozen=True)
class TwoSidedDrift(Drift):
    """Geometric mean of row and column softmax: half a column half-step on each side.

    Attributes:
        form: ``"split"`` normalises data and model on their own (masses 1). ``"joint"`` is
            Algorithm 2 of Deng et al.: rows run over data, particles and negatives together, and
            the field carries the masses s⁺s⁻.
        floor: Pointwise floor of the joint coupling. The released Algorithm 2 uses 1e-3, which
            does not shrink with the batch and dominates large ones; None for no floor.

    Source: Deng et al. (2026), Algorithm 2; "Sinkhorn drifting", arXiv 2603.12366, section 5.1.

    Example:
        >>> import torch, keodrift as kd
        >>> kd.TwoSidedDrift(tau=1.0, form="split")(torch.zeros(1, 2), torch.ones(3, 2))
        tensor([[1., 1.]])
    """

    _: KW_ONLY
    form: str = "split"
    floor: float | None = None

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        super().__post_init__()
        check_choice("form", self.form, ("split", "joint"))
        if self.floor is None:
            return
        check_positive("floor", self.floor)
        if self.floor >= 1:
            raise OptionError("floor", repr(self.floor), "a number between 0 and 1, or None")
        if self.form != "joint" or self.velocity != "barycentric":
            raise OptionError(
                "floor",
                f"form={self.form!r}, velocity={self.velocity!r}",
                "form='joint' and velocity='barycentric'",
            )

    def _fit(self, problem: Problem, start: DriftField | None) -> DriftField:
        kernels = (
            self.kernel(problem.x, problem.y),
            self.kernel(problem.x, problem.z, masked=self.mask_self),
        )
        if self.form == "split":
            data, model = _log_columns(kernels, problem.a.log())
            b, c = problem.b.log(), problem.c.log()
            return self.field(problem, b - data / 2, c - model / 2, kernels=kernels)
        # Multiplicities instead of weights: a uniform cloud counts its points, as the papers do.
        particles, n = problem.x.shape[-2], count(problem.a)
        counts = problem.a * n
        data, model = _log_columns(kernels, counts.log())
        b = (problem.b * count(problem.b)).log()
        c = (problem.c / problem.c[..., :particles].sum(-1, keepdim=True) * n).log()
        return self.field(
            problem,
            b - data / 2,
            c - model / 2,
            mass=JointMass(b, c),
            floor=self.floor or 0.0,
            kernels=kernels,
        )


def _log_columns(kernels: tuple[GibbsKernel, GibbsKernel], bias: Tensor) -> tuple[Tensor, Tensor]:
    """Log column sums over the particles, on data and model cloud."""
    data, model = (kernel.T.log_mass(bias) for kernel in kernels)
    # A lone particle, masked, has no column to normalise.
    return data, model.masked_fill(torch.isneginf(model), 0)
