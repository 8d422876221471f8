"""The Sinkhorn drift: the gradient flow of the Sinkhorn divergence, truncated or converged."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from keodrift.checks import check_positive
from keodrift.drifts.base import Drift, Problem
from keodrift.errors import OptionError
from keodrift.fields import DriftField
from keodrift.multilevel import Potential, converge, displacement
from keodrift.sinkhorn import Coupling, iterate


@dataclass(frozen=True)
class SinkhornDrift(Drift):
    """Barycentres of the entropic couplings OT_τ(q, p) and OT_τ(q, q).

    At convergence V is minus the Wasserstein gradient of the Sinkhorn divergence (exactly so with
    ``velocity="gradient"``, and with either for ½‖x−y‖²) and vanishes only where q = p. After few
    iterations it does not see mass that must move between separated modes.

    Attributes:
        iterations: A fixed, odd number of half-steps; k sweeps are 2k + 1. By default None:
            solved to ``tol``.
        tol: L1 error of the marginal that is not exact. 1e-3 is a field good to a few per cent,
            1e-4 to about one (benchmarks/field_error.py).
        max_iterations: Cap on half-steps; reaching it warns (`ConvergenceWarning`).
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
    iterations: int | None = None
    tol: float = 1e-3
    max_iterations: int = 2000

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        super().__post_init__()
        check_positive("tol", self.tol)
        check_positive("max_iterations", self.max_iterations, integer=True)
        if self.iterations is None:
            return
        check_positive("iterations", self.iterations, integer=True)
        if self.iterations % 2 == 0:
            raise OptionError(
                "iterations",
                self.iterations,
                f"an odd number of half-steps (k sweeps are 2k + 1), such as {self.iterations + 1}",
            )

    def _fit(self, problem: Problem, start: DriftField | None) -> DriftField:
        x, a = problem.x, problem.a
        carried = None if start is None else start.potentials
        data_start, model_start = (None, None) if carried is None else carried
        moved = 0.0
        if start is not None:
            moved = max(
                displacement(start.particles, x), displacement(start.data.points, problem.y)
            )
        data = self.couple(x, problem.y, a, problem.b, data_start, displacement=moved)
        # Extra negatives or a mask break the symmetry of the self problem.
        symmetric = not (problem.has_negatives or self.mask_self)
        model = self.couple(
            x,
            problem.z,
            a,
            problem.c,
            model_start,
            displacement=moved,
            symmetric=symmetric,
            masked=self.mask_self,
        )
        kernels = data.kernel, model.kernel
        return self.field(problem, data.bias, model.bias, couplings=(data, model), kernels=kernels)

    def couple(
        self,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        b: Tensor,
        carried: Potential | None = None,
        *,
        displacement: float = 0.0,
        symmetric: bool = False,
        masked: bool = False,
    ) -> Coupling:
        """The entropic coupling of checked clouds, by this drift's iterations or tolerance."""
        kernel = self.kernel(x, y, masked)
        if self.iterations is not None:
            return iterate(kernel, a, b, self.iterations, tol=self.tol)
        return converge(
            kernel,
            x,
            y,
            a,
            b,
            tol=self.tol,
            max_iterations=self.max_iterations,
            symmetric=symmetric,
            carried=carried,
            displacement=displacement,
            # Coarser problems pick theirs, except where one was asked for that compiles nothing.
            backend=self.backend if self.backend in ("dense", "tiled") else "auto",
        )
