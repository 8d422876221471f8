"""The Sinkhorn drift: the gradient flow of the Sinkhorn divergence, truncated or converged."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from keodrift.drifts.clouds import Clouds
from keodrift.drifts.softmax import SoftmaxDrift
from keodrift.fields import Field, SoftmaxField
from keodrift.transport import Carried, EntropicProblem, Sinkhorn, coarse
from keodrift.transport.starts import displacement


@dataclass(frozen=True)
class SinkhornDrift(SoftmaxDrift):
    """Barycentres of the entropic couplings OT_τ(q, p) and OT_τ(q, q).

    At convergence V is minus the Wasserstein gradient of the Sinkhorn divergence (exactly so with
    ``velocity="gradient"``, and with either for ½‖x−y‖²) and vanishes only where q = p. After few
    half-steps it does not see mass that must move between separated modes.

    Attributes:
        half_steps: A fixed, odd number of half-steps; k sweeps are 2k + 1. By default None:
            solved to ``tol``.
        tol: L1 error of the marginal that is not exact. 1e-3 is a field good to a few per cent,
            1e-4 to about one (benchmarks/field_error.py).
        max_half_steps: Cap on half-steps; reaching it warns (`ConvergenceWarning`).
        mask_self: False by default: the coupling OT_τ(q, q) needs its diagonal.

    Source: "Sinkhorn drifting", arXiv 2603.12366, Algorithm 1 and Proposition 3.1.

    Example:
        >>> import torch, keodrift as kd
        >>> x, y = torch.zeros(4, 2), torch.ones(5, 2)
        >>> kd.SinkhornDrift(tau=0.05)(x, y)[0]
        tensor([1., 1.])
    """

    _: KW_ONLY
    mask_self: bool = False
    half_steps: int | None = None
    tol: float = 1e-3
    max_half_steps: int = 2000

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        super().__post_init__()
        _ = self.solver

    @property
    def solver(self) -> Sinkhorn:
        """How its couplings are found."""
        return Sinkhorn(self.half_steps, self.tol, self.max_half_steps)

    def _fit(self, clouds: Clouds, start: Field | None) -> SoftmaxField:
        x, a, how = clouds.x, clouds.a, (self.cost, self.tau, self.backend)
        # Extra negatives or a mask break the symmetry of the self problem.
        symmetric = bool(self.cost.symmetric) and not (clouds.has_negatives or self.mask_self)
        problems = (
            EntropicProblem(x, clouds.y, a, clouds.b, *how),
            EntropicProblem(
                x, clouds.z, a, clouds.c, *how, masked=self.mask_self, symmetric=symmetric
            ),
        )
        starts = [coarse, coarse]
        if isinstance(start, SoftmaxField) and start.couplings:
            moved = max(displacement(start.particles, x), displacement(start.data.points, clouds.y))
            starts = [Carried(before, moved) for before in start.couplings]
        couplings = tuple(map(self.solver.couple, problems, starts))
        data, model = (coupling.bias for coupling in couplings)
        kernels = tuple(problem.kernel for problem in problems)
        return self.field(clouds, data, model, couplings=couplings, kernels=kernels)
