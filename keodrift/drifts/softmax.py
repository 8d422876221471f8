"""Drifts of two softmax sides, and those whose kernels are normalised once at most."""

from __future__ import annotations

from copy import copy
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from keodrift import checks
from keodrift.costs import as_cost, check_cost, check_temperature
from keodrift.drifts.base import Drift
from keodrift.drifts.clouds import Clouds, count
from keodrift.errors import OptionError
from keodrift.fields import Field, FlooredField, JointRows, Side, SoftmaxField
from keodrift.reductions import (
    ENGINES,
    Engine,
    GibbsKernel,
    check_backend,
    choose_backend,
    expected_cost,
    gibbs_kernel,
)


@dataclass(frozen=True)
class SoftmaxDrift(Drift):
    """What softmax drifts share.

    Attributes:
        tau: Temperature τ > 0, in the unit of the cost. Small: each particle sees its nearest
            data; large: only the means.
        relative: τ (and a reach) in units of the mean cost between particles and all they meet,
            data and model cloud, in every problem and class by its own; 0.05 is a start. By
            default τ is what it is.
        cost: Ground cost: ``"half_squared"`` (½‖x−y‖², default: τ is a variance),
            ``"squared"``, ``"euclidean"``, a `Cost`, or an expression ``c(x, y)``.
        mask_self: Excludes each particle from its own repulsion; nothing is excluded where other
            draws repel (``model=``).
        velocity: ``"barycentric"`` (T(z) − z, the papers' choice) or ``"gradient"``
            (−Σ softmax ∇C; the same for ½‖x−y‖², unit vectors for ‖x−y‖).
        backend: ``"auto"`` picks the engine; `choose_backend` tells which and why.

    Raises:
        TemperatureError: τ is not a number from 1e-30 to 1e30, or, at a fit, C/τ overflows.
        OptionError: Another option is none of its values.

    Example:
        >>> import torch, keodrift as kd
        >>> drift = kd.OneSidedDrift(tau=0.05, relative=True)
        >>> drift.fit(torch.zeros(1, 2), torch.ones(3, 2)).data.tau
        tensor(0.0375, dtype=torch.float64)
    """

    tau: float
    _: KW_ONLY
    relative: bool = False
    cost: Any = "half_squared"
    mask_self: bool = True
    velocity: str = "barycentric"
    backend: str | Engine = "auto"

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        object.__setattr__(self, "tau", checks.check_tau(self.tau))
        object.__setattr__(self, "cost", as_cost(self.cost))
        checks.check_choice("velocity", self.velocity, ("barycentric", "gradient"))
        check_backend(self.backend)
        for name in ("mask_self", "relative"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(name, repr(getattr(self, name)), "True or False")

    def _tried_on(self, *clouds: Tensor) -> SoftmaxDrift:
        cost = check_cost(self.cost, *clouds)
        if not self.relative:
            check_temperature(self.tau, cost, *clouds)
        return self if cost is self.cost else replace(self, cost=cost)

    def _together(self, n: int, m: int, d: int, problems: int, device: str) -> bool:
        engine = ENGINES.get(self.backend) if isinstance(self.backend, str) else self.backend
        if engine is not None and not engine.stores:
            return False
        # No larger than one problem that is stored: what no cache holds is read slowly again.
        return choose_backend(problems * n, m, d, device=device, cost=self.cost).engine == "dense"

    def _at(self, clouds: Clouds) -> SoftmaxDrift:
        if not self.relative:
            return self
        x, a = clouds.x, clouds.a
        met = ((clouds.y, clouds.b), (clouds.z, clouds.c))
        counts = torch.stack([count(weights)[..., 0] for _, weights in met])
        means = torch.stack([expected_cost(x, a, *other, self.cost) for other in met])
        unit = (counts * means).sum(0) / counts.sum(0)
        return self._in_units(torch.where(unit > 0, unit, 1.0))

    def _in_units(self, unit: Tensor) -> SoftmaxDrift:
        """The drift with a temperature a problem, in the unit of the cost."""
        absolute = copy(self)  # what is checked at the door is one number
        object.__setattr__(absolute, "tau", unit * self.tau)
        return absolute

    def side(self, points: Tensor, bias: Tensor) -> Side:
        """A cloud with a bias, under this drift's cost, temperature and engine."""
        return Side(points, bias, self.cost, self.tau, self.backend)

    def kernels(self, clouds: Clouds) -> tuple[GibbsKernel, GibbsKernel]:
        """The Gibbs kernels of the particles with the data and with the model cloud."""
        x, how = clouds.x, (self.cost, self.tau)
        a, b, c = (weights > 0 for weights in (clouds.a, clouds.b, clouds.c))
        mask = self.masks(clouds)
        return (
            gibbs_kernel(x, clouds.y, *how, backend=self.backend, alive=(a, b)),
            gibbs_kernel(x, clouds.z, *how, mask_self=mask, backend=self.backend, alive=(a, c)),
        )

    def masks(self, clouds: Clouds) -> bool:
        """Whether pairs i = i are excluded: other draws of the model are no particle's own."""
        return self.mask_self and clouds.repels_itself

    def field(
        self,
        clouds: Clouds,
        data: Tensor,
        model: Tensor,
        kind: type[SoftmaxField] = SoftmaxField,
        **extra: Any,
    ) -> SoftmaxField:
        """A field from the biases of its two sides."""
        return kind(
            clouds.x,
            self.side(clouds.y, data),
            self.side(clouds.z, model),
            velocity=self.velocity,
            mask_self=self.masks(clouds),
            dtype=clouds.dtype,
            **extra,
        )


@dataclass(frozen=True)
class OneSidedDrift(SoftmaxDrift):
    """Softmax over the data minus softmax over the model: g = 0 on both sides.

    Equals the first Sinkhorn half-step without mask. It vanishes where q = p, but not only there.
    Arguments as for `SoftmaxDrift`; particles are masked from their own repulsion by default.

    Raises:
        TemperatureError: τ is not a number from 1e-30 to 1e30, or, at a fit, C/τ overflows.
        OptionError: Another option is none of its values.

    Source: Deng et al. (2026), eq. 8; "Sinkhorn drifting", arXiv 2603.12366, eq. 3.

    Example:
        >>> import torch, keodrift as kd
        >>> kd.OneSidedDrift(tau=0.1)(torch.zeros(1, 2), torch.ones(3, 2))
        tensor([[1., 1.]])
    """

    def _fit(self, clouds: Clouds, start: Field | None) -> SoftmaxField:
        return self.field(clouds, clouds.b.log(), clouds.c.log())


@dataclass(frozen=True)
class TwoSidedDrift(SoftmaxDrift):
    """Geometric mean of row and column softmax: half a column half-step on each side.

    Attributes:
        form: ``"split"`` normalises data and model on their own (masses 1). ``"joint"`` is
            Algorithm 2 of Deng et al.: rows run over data, particles and negatives together, and
            the field carries the masses s⁺s⁻.
        floor: Pointwise floor of the joint coupling. The released Algorithm 2 uses 1e-3, which
            does not shrink with the batch and dominates large ones; None for no floor.

    Raises:
        TemperatureError: τ is not a number from 1e-30 to 1e30, or, at a fit, C/τ overflows.
        OptionError: Another option is none of its values.

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
        checks.check_choice("form", self.form, ("split", "joint"))
        if self.floor is None:
            return
        checks.check_positive("floor", self.floor)
        if self.floor >= 1:
            raise OptionError("floor", repr(self.floor), "a number between 0 and 1, or None")
        if self.form != "joint" or self.velocity != "barycentric":
            raise OptionError(
                "floor",
                f"form={self.form!r}, velocity={self.velocity!r}",
                "form='joint' and velocity='barycentric'",
            )

    def _fit(self, clouds: Clouds, start: Field | None) -> SoftmaxField:
        kernels = self.kernels(clouds)
        if self.form == "split":
            data, model = log_columns(kernels, clouds.a.log())
            b, c = clouds.b.log(), clouds.c.log()
            return self.field(clouds, b - data / 2, c - model / 2, kernels=kernels)
        # Multiplicities instead of weights: a uniform cloud counts its points, as the papers do.
        a, b, c = clouds.multiplicities
        data, model = log_columns(kernels, a.log())
        biases = b.log() - data / 2, c.log() - model / 2
        rows = JointRows(b.log(), c.log(), a, self.floor or 0.0)
        kind = SoftmaxField if self.floor is None else FlooredField
        return self.field(clouds, *biases, kind=kind, masses=rows, kernels=kernels)


def log_columns(kernels: tuple[GibbsKernel, GibbsKernel], bias: Tensor) -> tuple[Tensor, Tensor]:
    """Log column sums over the particles, on data and model cloud."""
    data, model = (kernel.T.log_mass(bias) for kernel in kernels)
    # A lone particle, masked, has no column to normalise.
    return data, model.masked_fill(torch.isneginf(model), 0)
