"""Drifts along the gradient of a maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from keodrift.checks import check_choice, check_positive, check_queries
from keodrift.costs import Cost, euclidean, half_squared
from keodrift.drifts.base import Drift
from keodrift.drifts.clouds import Clouds
from keodrift.drifts.rkhs import KernelMasses
from keodrift.drifts.softmax import SoftmaxDrift
from keodrift.errors import OptionError, TemperatureError
from keodrift.fields import Field, SoftmaxField, saturated
from keodrift.reductions import Engine, check_backend


def _half_log(distance: Any) -> Any:
    return (1 + distance**2).log() / 2


def _half_log_of_points(x: Any, y: Any) -> Any:
    return (1 + ((x - y) ** 2).sum(-1)).log() / 2


_QUADRIC = Cost("half_log_quadric", _half_log_of_points, symmetric=True, radial=_half_log)
# Kernels of unit bandwidth as exp(−C/τ). The energy's is −C itself: its gradient is the mean of
# ∇C under the weights alone, which is what is left where τ makes all exponentials 1.
FLAT = 1e20
KERNELS: dict[str, tuple[Cost, float]] = {
    "gaussian": (half_squared, 1.0),
    "laplacian": (euclidean, 1.0),
    "imq": (_QUADRIC, 1.0),
    "energy": (euclidean, FLAT),
}


@dataclass(frozen=True)
class _Witness(SoftmaxDrift):
    """The gradient of a kernel's mean over the data less that of its mean over the model cloud."""

    _: KW_ONLY
    mask_self: bool = False
    velocity: str = "gradient"

    def _fit(self, clouds: Clouds, start: Field | None) -> SoftmaxField:
        masses = None if self.tau == FLAT else KernelMasses(1.0)
        return self.field(clouds, clouds.b.log(), clouds.c.log(), masses=masses)


@dataclass(frozen=True, eq=False)
class ScaledSum(Field):
    """A sum of fields, each in a unit of length of its own: Σ_h V_h(z/h)/h.

    Attributes:
        particles: The particles it was fitted on, ``(…, N, d)``.
        parts: The fields V_h, fitted on clouds divided by h.
        units: The lengths h.
        dtype: Of the drift.
    """

    particles: Tensor
    parts: tuple[Field, ...]
    units: tuple[float, ...]
    dtype: torch.dtype

    def __call__(self, z: Tensor | None = None) -> Tensor:
        """The sum at ``z (…, K, d)``, in which it is differentiable, or at the particles.

        Raises:
            ArgumentError: As for any field.
        """
        at = None if z is None else check_queries("z", z, self.particles)
        total = torch.zeros_like(self.particles if at is None else at)
        for part, unit in zip(self.parts, self.units, strict=True):
            total = total + (part() if at is None else part(at / unit)) / unit
        return saturated(total, self.dtype if z is None else z.dtype)


@dataclass(frozen=True)
class MMDDrift(Drift):
    """The gradient flow of ½MMD²: V = ∇(mean of k(·, y) − mean of k(·, x)).

    It is curl-free and vanishes where q = p; a particle does not push itself, so there is nothing
    to mask. Particles much farther from all data than the bandwidth are hardly attracted, which
    sums over bandwidths and the energy distance mend.

    Attributes:
        bandwidth: h, a length, or several, whose kernels are added. `silverman_bandwidth` and
            `keodrift.metrics.median_distance` propose one. The energy distance has none.
        kernel: With r = ‖x−y‖/h: ``"gaussian"`` exp(−r²/2), ``"laplacian"`` exp(−r), ``"imq"``
            (inverse multiquadric) (1 + r²)^(−½), or ``"energy"`` −‖x−y‖.
        backend: ``"auto"`` picks the engine, or its name.

    V is in units of 1/h (without unit for the energy): where a drift is wanted that moves by
    lengths, as `simulate` and `drift_loss` do, choose a step to match or ``normalize=True``.

    Raises:
        OptionError: An option is none of its values, or a bandwidth is missing or not positive.
        TemperatureError: At a fit, a bandwidth is too small for the distances.

    Source: Arbel et al. (2019), "Maximum mean discrepancy gradient flow"; arXiv 2605.05118,
    section 4.2. Energy: Székely and Rizzo (2013).

    Example:
        >>> import torch, keodrift as kd
        >>> kd.MMDDrift(kernel="energy")(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    bandwidth: float | Sequence[float] | None = None
    _: KW_ONLY
    kernel: str = "gaussian"
    backend: str | Engine = "auto"

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        check_choice("kernel", self.kernel, tuple(KERNELS))
        check_backend(self.backend)
        if isinstance(self.bandwidth, str):
            raise OptionError("bandwidth", repr(self.bandwidth), "a positive number, or several")
        if isinstance(self.bandwidth, Sequence):
            object.__setattr__(self, "bandwidth", tuple(self.bandwidth))
        if (self.bandwidth is None) != (self.kernel == "energy"):
            needs = "None" if self.bandwidth is not None else "a positive number, or several,"
            raise OptionError("bandwidth", repr(self.bandwidth), f"{needs} for {self.kernel!r}")
        if not self.bandwidths:
            raise OptionError("bandwidth", repr(self.bandwidth), "at least one positive number")
        for one in self.bandwidths:
            check_positive("bandwidth", one)

    @property
    def bandwidths(self) -> tuple[float, ...]:
        """All bandwidths; 1 where the kernel has none."""
        given = 1.0 if self.bandwidth is None else self.bandwidth
        return tuple(given) if isinstance(given, Sequence) else (given,)

    @property
    def _witness(self) -> _Witness:
        cost, tau = KERNELS[self.kernel]
        return _Witness(tau, cost=cost, backend=self.backend)

    def _tried_on(self, *clouds: Tensor) -> MMDDrift:
        for h in self.bandwidths:
            try:
                self._witness._tried_on(*(z / h for z in clouds))
            except TemperatureError as error:
                needs = "a larger one" + (
                    "" if clouds[0].dtype == torch.float64 else ", or float64"
                )
                raise TemperatureError("bandwidth", f"{h:g}, too small a unit", needs) from error
        return self

    def _together(self, n: int, m: int, d: int, problems: int, device: str) -> bool:
        return self._witness._together(n, m, d, problems, device)

    def _fit(self, clouds: Clouds, start: Field | None) -> ScaledSum:
        parts = tuple(
            self._witness._fit(
                replace(
                    clouds, x=clouds.x / h, y=clouds.y / h, z=clouds.z / h, dtype=clouds.x.dtype
                ),
                None,
            )
            for h in self.bandwidths
        )
        return ScaledSum(clouds.x, parts, self.bandwidths, clouds.dtype)
