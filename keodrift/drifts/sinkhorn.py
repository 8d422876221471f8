"""The Sinkhorn drift: the gradient flow of the Sinkhorn divergence, truncated or converged."""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from keodrift.checks import check_choice, check_positive, check_reach
from keodrift.drifts.clouds import Clouds
from keodrift.drifts.softmax import SoftmaxDrift
from keodrift.errors import ConvergenceWarning, OptionError, users_stacklevel
from keodrift.fields import Field, RowMasses, SoftmaxField
from keodrift.precision import full_precision
from keodrift.transport import (
    Again,
    Carried,
    Clusters,
    Coupling,
    EntropicProblem,
    Sinkhorn,
    coarse,
)
from keodrift.transport.sinkhorn import Start
from keodrift.transport.starts import displacement

REFINEMENTS = 12  # quarters of tol, at most: a factor of 10⁷


@dataclass(frozen=True)
class SinkhornDrift(SoftmaxDrift):
    """Barycentres of the entropic couplings OT_τ(q, p) and OT_τ(q, q).

    At convergence V is minus the Wasserstein gradient of the Sinkhorn divergence (of a symmetric
    cost; exactly so with ``velocity="gradient"``, and with either for ½‖x−y‖²). It vanishes where
    q = p; that it does so only there is known under conditions (Proposition 3.7) and for two
    points, and is false where particles coincide. After few half-steps it does not see mass that
    must move between separated modes.

    With a ``reach`` ρ the marginals are relaxed, OT_{τ,ρ}: it is the cost above which mass is left
    where it is. So imbalances between modes farther apart than that, and what each batch draws
    unevenly, pull less, and an outlier is not matched at any price.

    Attributes:
        reach: ρ, in the unit of the cost; `reach_for_gaps` reads one off the data. None, the
            default: the marginals are exact, ρ = ∞. ρ ≪ τ: the one-sided field without mask.
        masses: ``"unit"`` (default): every row of the couplings counts fully, also where the model
            has gone farther than ρ from all data. ``"gradient"``: rows count by the share of mass
            they keep, exp(−f/ρ), which makes V minus the gradient of the relaxed Sinkhorn
            divergence; stray particles are then left alone. Only with a ``reach``.
        half_steps: A fixed, odd number of half-steps; k sweeps are 2k + 1. By default None:
            solved to ``tol``.
        tol: L1 error of the marginal that is not exact. 1e-3 is a field good to a few per cent,
            1e-4 to about one (benchmarks/field_error.py), where the field is large. It is no bound
            where the field is small: late in a training, or at modes that hold less than ``tol``.
        drift_tol: Goes on, by quarters of the marginal error, until the field changes by no more
            than this share of itself (L2, over all particles of a problem). By default None:
            ``tol`` decides.
        max_half_steps: Cap on half-steps, of which the last sweep is finished; reaching it warns
            (`ConvergenceWarning`).
        mask_self: False by default: the coupling OT_τ(q, q) needs its diagonal.

    Raises:
        TemperatureError: τ is not a number from 1e-30 to 1e30, or, at a fit, C/τ overflows.
        OptionError: Another option is none of its values, or does not go with others: a
            ``drift_tol`` with a fixed number of half-steps.

    Source: "Sinkhorn drifting", arXiv 2603.12366, Algorithm 1 and Proposition 3.1. Relaxed
    marginals: Chizat et al. (2018), "Scaling algorithms for unbalanced optimal transport problems",
    Algorithm 1; Séjourné et al. (2019), "Sinkhorn divergences for unbalanced optimal transport".

    Example:
        >>> import torch, keodrift as kd
        >>> x, y = torch.zeros(4, 2), torch.ones(5, 2)
        >>> kd.SinkhornDrift(tau=0.05)(x, y)[0]
        tensor([1., 1.])
    """

    _: KW_ONLY
    mask_self: bool = False
    reach: float | None = None
    masses: str = "unit"
    half_steps: int | None = None
    tol: float = 1e-3
    drift_tol: float | None = None
    max_half_steps: int = 2000

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        super().__post_init__()
        _ = self.solver
        object.__setattr__(self, "reach", check_reach(self.reach))
        check_choice("masses", self.masses, ("unit", "gradient"))
        if self.reach is None and self.masses != "unit":
            raise OptionError("masses", repr(self.masses), "a reach, or 'unit': all masses are 1")
        if self.drift_tol is None:
            return
        check_positive("drift_tol", self.drift_tol)
        if self.half_steps is not None:
            raise OptionError(
                "drift_tol", self.drift_tol, "half_steps=None, a solve to a tolerance"
            )

    @property
    def solver(self) -> Sinkhorn:
        """How its couplings are found."""
        return Sinkhorn(self.half_steps, self.tol, self.max_half_steps)

    def _in_units(self, unit: Tensor) -> SoftmaxDrift:
        absolute = super()._in_units(unit)
        if self.reach is not None:
            object.__setattr__(absolute, "reach", unit * self.reach)
        return absolute

    def _fit(self, clouds: Clouds, start: Field | None) -> SoftmaxField:
        x, a, how = clouds.x, clouds.a, (self.cost, self.tau, self.backend)
        masked, reach = self.masks(clouds), self.reach
        # Other draws, extra negatives or a mask break the symmetry of the self problem.
        symmetric = bool(self.cost.symmetric) and clouds.repels_itself
        symmetric = symmetric and not (clouds.has_negatives or masked)
        problems = (
            EntropicProblem(x, clouds.y, a, clouds.b, *how, reach=reach),
            EntropicProblem(x, clouds.z, a, clouds.c, *how, masked, symmetric, reach),
        )
        begin = partial(coarse, clusters=Clusters())
        starts: list[Start] = [begin, begin]
        if isinstance(start, SoftmaxField) and start.couplings:
            before = (start.particles, start.data.points, start.model.points)
            moved = max(map(displacement, before, (x, clouds.y, clouds.z)))
            starts = [Carried(before, moved, begin) for before in start.couplings]
        solver = self.solver
        field = self._of(clouds, tuple(map(solver.couple, problems, starts)))
        return field if self.drift_tol is None else self._refined(clouds, field, self.drift_tol)

    def _refined(self, clouds: Clouds, field: SoftmaxField, drift_tol: float) -> SoftmaxField:
        """The field, solved further until it stands still."""
        v, share = field().double(), math.inf
        for _ in range(REFINEMENTS):
            with full_precision(clouds.x.device.type):  # once, and not in every half-step
                found = [self._further(old) for old in field.couplings]
            pairs = zip(field.couplings, found, strict=True)
            if any(
                old.half_steps == new.half_steps and not new.converged.all() for old, new in pairs
            ):
                break  # nothing moved, for want of half-steps
            # What counts as converged is still what was asked for.
            field = self._of(clouds, tuple(replace(c, tol=self.tol) for c in found))
            before, v = v, field().double()
            change, size = (z.square().sum((-1, -2)) for z in (v - before, v))
            share = float((change / size.clamp_min(torch.finfo(size.dtype).tiny)).max()) ** 0.5
            if share <= drift_tol:
                return field
        warnings.warn(
            f"The drift still changes by {share:.1e} > drift_tol = {drift_tol:g} of itself: "
            f"Sinkhorn {field.reason}; raise max_half_steps or drift_tol, or use float64.",
            ConvergenceWarning,
            stacklevel=users_stacklevel(),
        )
        return field

    def _further(self, old: Coupling) -> Coupling:
        """Solved to a quarter of its error: one that is far below its tolerance moves as well."""
        tol = min(self.tol, float(old.marginal_error.max())) / 4
        solver = replace(self.solver, tol=max(tol, math.ulp(0.0)))
        return solver.solve(old.problem, Again(old))

    def _of(self, clouds: Clouds, couplings: tuple[Coupling, ...]) -> SoftmaxField:
        data, model = (coupling.bias for coupling in couplings)
        kernels = tuple(coupling.problem.kernel for coupling in couplings)
        masses = None
        if self.reach is not None and self.masses == "gradient":
            masses = RowMasses(1 - couplings[0].problem.marginals.damping)
        return self.field(clouds, data, model, couplings=couplings, kernels=kernels, masses=masses)
