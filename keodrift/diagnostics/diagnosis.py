"""A report on a drift at two clouds: what may keep it from bringing the one to the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from keodrift.checks import check_cloud
from keodrift.diagnostics.shares import self_interaction, unclaimed
from keodrift.drifts import Drift, SoftmaxDrift
from keodrift.errors import ArgumentError, ShapeError
from keodrift.fields import two_sides
from keodrift.plots import FLOOR, MODEL, new_figure
from keodrift.reach import mode_gap
from keodrift.temperature import effective_neighbours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEIGHBOURS = 2.0  # below, a particle is drawn to one datum alone
SELF = 0.5  # more mass than that on itself, and a particle is hardly repelled by the others
FAR = 7.0  # gap/τ at which a kernel value, e⁻⁷, is below a thousandth
UNCLAIMED = 0.05  # of the data's mass


@dataclass(frozen=True)
class Verdict:
    """A number beside the limit of a rule.

    Attributes:
        name: What was measured.
        value: The number.
        limit: Where the rule draws the line.
        at_least: Whether the number has to be above the limit, or below.
        meaning: What follows if it is not, and what helps, in words.
        rule: Where the rule comes from.
    """

    name: str
    value: float
    limit: float
    at_least: bool
    meaning: str
    rule: str

    @property
    def passed(self) -> bool:
        """Whether the number is on the right side."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        relation = "≥" if self.at_least else "≤"
        said = f"{self.name}: {self.value:.3g}, wanted {relation} {self.limit:.3g}"
        why = f"\n      {self.meaning}.\n      Rule: {self.rule}."
        return f"ok    {said}" if self.passed else f"LOOK  {said}{why}"


@dataclass(frozen=True)
class Diagnosis:
    """What a drift does at two clouds, in numbers; ``str`` is a report, `plot` a figure.

    Attributes:
        particles: N.
        data: M.
        tau: Temperature, in the unit of the cost.
        speed: Root mean square of V over particles and coordinates, a length.
        neighbours: Data points a particle averages over, 1 to M.
        self_share: Mean share of the model side's mass that a particle has itself, 0 to 1.
        self_bias: The pull of particles on themselves relative to the drift: root mean square of
            what a mask would change at these potentials, over ``speed``.
        gap: Cost of the widest gap between modes of the data.
        unclaimed: Share of the data's mass that no particle is drawn to, while other data are drawn
            to too often: half the L1 error of the data's marginal, 0 to 1.
        marginal_error: Of the couplings, the model's own included; None where none was solved.
        tol: What it should be at most.
        reason: Why the solve ended.

    Example:
        >>> import torch, keodrift as kd
        >>> x, y = (torch.arange(20)[:, None] < n for n in (16, 10))
        >>> print(kd.diagnose(kd.OneSidedDrift(tau=0.01), x.double(), y.double()))
        20 particles, 20 data points, τ = 0.01, root mean square drift ...e-23; nothing was solved
        ok    effective neighbours: 10, wanted ≥ 2
        ok    mass of a particle on itself: 0, wanted ≤ 0.5
        ok    pull of particles on themselves: 0, wanted ≤ 0.5
        LOOK  mass out of reach: 0.3, wanted ≤ 0.05
        ...
    """

    particles: int
    data: int
    tau: float
    speed: float
    neighbours: float
    self_share: float
    self_bias: float
    gap: float
    unclaimed: float
    marginal_error: float | None
    tol: float
    reason: str

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Every rule with its number."""
        far = self.gap / self.tau
        across = f"{math.exp(-far):.0e}"
        verdicts = [
            Verdict(
                "effective neighbours", self.neighbours, NEIGHBOURS, True,
                "τ is too small: every particle is drawn to its nearest datum alone. Raise τ, for "
                "instance to tau_for_neighbours(drift, x, y, 20)",
                "exp of the row entropy; as τ → 0 it is 1",
            ),
            Verdict(
                "mass of a particle on itself", self.self_share, SELF, False,
                "Particles repel themselves rather than each other, so nothing spreads them. Raise "
                "τ or the batch, mask them, or let other draws repel (model=)",
                "softmax of the model side at i = i",
            ),
            Verdict(
                "pull of particles on themselves", self.self_bias, SELF, False,
                "The batch is too small for what is left to learn: much of the drift is what each "
                "particle does to itself, and points inward. Let other draws repel (model=), or "
                "raise the batch",
                "the drift with and without the pairs i = i",
            ),
            Verdict(
                "mass out of reach", self.unclaimed if far > FAR else 0.0, UNCLAIMED, False,
                f"So much of the data draws no particle, and across the gap between modes the "
                f"kernel is {across}, exp(−gap/τ) with gap/τ = {far:.3g}. Converge the marginals "
                "(SinkhornDrift with a tol), use a reach beyond the gap (reach_for_gaps), or raise "
                "τ",
                "half the L1 error of the data's marginal; velocities between far modes are of "
                "order exp(−gap/τ) unless marginals are exact",
            ),
        ]  # fmt: skip
        if self.marginal_error is not None:
            verdicts.append(
                Verdict(
                    "marginal error", self.marginal_error, self.tol, False,
                    f"The coupling is not solved: {self.reason}. Raise max_half_steps, give a tol "
                    "in place of half_steps, or raise τ",
                    "L1 error of the marginal that is not exact; Σ a V is the difference of the "
                    "means only where it is 0",
                )
            )  # fmt: skip
        return tuple(verdicts)

    def __str__(self) -> str:
        head = (
            f"{self.particles} particles, {self.data} data points, τ = {self.tau:.3g}, "
            f"root mean square drift {self.speed:.3g}; {self.reason}"
        )
        return "\n".join([head, *map(str, self.verdicts)])

    def plot(self) -> Figure:
        """One bar a rule: by which factor its number is on the wrong side of the limit."""
        figure, grid = new_figure(7, 0.5 * len(self.verdicts) + 1.2)
        axes = grid[0, 0]
        for place, one in enumerate(reversed(self.verdicts)):
            excess = one.limit / one.value if one.at_least else one.value / one.limit
            bar = math.log10(min(max(excess, 1e-3), 1e3))
            axes.barh(place, bar, color=FLOOR if one.passed else MODEL)
            axes.text(0, place, f" {one.value:.3g}", va="center", fontsize=8)
        axes.axvline(0, color="0.4", lw=1)
        axes.set_yticks(range(len(self.verdicts)), [v.name for v in reversed(self.verdicts)])
        axes.set_xlim(-3.1, 3.1)
        axes.set_xlabel("decades beyond the limit of the rule")
        axes.set_title(f"To the right: what holds the drift up (τ = {self.tau:.3g})", fontsize=10)
        return figure


def diagnose(drift: Drift, x: Tensor, y: Tensor, *, model: Tensor | None = None) -> Diagnosis:
    """Why a training or a flow stalls: a fit, looked at from five sides, in linear memory.

    Args:
        drift: A drift of two softmax sides.
        x: Particles, ``(N, d)``.
        y: Data, ``(M, d)``.
        model: Other draws of the model that repel in the particles' place, ``(K, d)``.

    Returns:
        The numbers, with a verdict each.

    Raises:
        ArgumentError: The drift is none of two softmax sides, or a cloud is not one cloud.

    Example:
        >>> import torch, keodrift as kd
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> report = kd.diagnose(kd.SinkhornDrift(tau=0.5), x, x + 1)
        >>> all(verdict.passed for verdict in report.verdicts)
        True
    """
    if check_cloud("x", x).dim() != 2:
        raise ShapeError("x", f"shape {tuple(x.shape)}", "one problem, a shape (N, d)")
    check_cloud("y", y, x)
    if not isinstance(drift, SoftmaxDrift):
        raise ArgumentError("drift", type(drift).__name__, "a drift of two softmax sides")
    field = two_sides(drift.fit(x, y, model=model), "drift")
    neighbours = float(effective_neighbours(field))
    with torch.no_grad():
        v, (share, pull) = field().double(), self_interaction(field)
    speed, error = float(v.square().mean().sqrt()), field.marginal_error
    bias = float(pull.square().mean().sqrt())
    return Diagnosis(
        particles=len(x),
        data=len(y),
        tau=float(field.data.tau),
        speed=speed,
        neighbours=neighbours,
        self_share=float(share.mean()),
        self_bias=bias / speed if speed > 0 else math.inf * bias if bias > 0 else 0.0,
        gap=mode_gap(y, cost=field.data.cost),
        unclaimed=float(unclaimed(field)),
        marginal_error=None if error is None else float(error),
        tol=max((coupling.tol for coupling in field.couplings), default=0.0),
        reason=field.reason,
    )
