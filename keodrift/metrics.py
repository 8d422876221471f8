"""Measures of how close two clouds are; each is usable alone."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from keodrift.checks import check_finite
from keodrift.costs import euclidean
from keodrift.errors import ArgumentError, ShapeError
from keodrift.reductions import gibbs_kernel, mean_cost, nearest
from keodrift.reductions import median_distance as median_of


def _check_pair(x: Tensor, y: Tensor, name: str) -> None:
    if x.ndim != 2 or len(x) == 0:
        raise ShapeError("x", tuple(x.shape), "a shape (N, d) with N ≥ 1")
    if y.ndim != 2 or len(y) == 0 or y.shape[1] != x.shape[1]:
        raise ShapeError(name, tuple(y.shape), f"a shape (M, {x.shape[1]}) with M ≥ 1")
    check_finite("x", x)
    check_finite(name, y)


def subsample(points: Tensor, cap: int, generator: torch.Generator | None = None) -> Tensor:
    """At most ``cap`` of the points, drawn without replacement; all of them where they fit.

    Args:
        points: ``(N, d)``.
        cap: Largest number of points to keep.
        generator: Decides which; a fixed one if None, so that equal calls agree.

    Raises:
        ArgumentError: ``cap`` is below 1.

    Example:
        >>> subsample(torch.zeros(10, 2), 4).shape
        torch.Size([4, 2])
    """
    if cap < 1:
        raise ArgumentError("cap", cap, "at least one point")
    if len(points) <= cap:
        return points
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(points), generator=generator, device=generator.device)
    return points[order[:cap].to(points.device)]


def wasserstein_squared(
    x: Tensor, y: Tensor, *, cap: int = 2000, generator: torch.Generator | None = None
) -> float:
    """Exact squared 2-Wasserstein distance of two clouds with uniform weights.

    W₂² = min over couplings of Σ π_ij ‖x_i − y_j‖², solved by POT's network simplex. Between two
    finite samples of *one* distribution it is not 0: report that floor beside it.

    Args:
        x: ``(N, d)``.
        y: ``(M, d)``.
        cap: Clouds with more points are subsampled to this many; the cost grows like its cube.
        generator: Decides the subsamples; a fixed one if None.

    Returns:
        W₂², in squared units of length.

    Raises:
        ShapeError: The clouds are empty or live in different dimensions.
        NonFiniteError: A coordinate is NaN or infinite.

    Reference:
        Flamary et al., POT: Python Optimal Transport, JMLR 2021 (`ot.emd2`).

    Example:
        >>> x = torch.zeros(3, 2)
        >>> wasserstein_squared(x, x + torch.tensor([3.0, 4.0]))
        25.0
    """
    _check_pair(x, y, "y")
    ot = _import_pot()
    x, y = (subsample(cloud, cap, generator).detach().to("cpu", torch.float64) for cloud in (x, y))
    # Centring both clouds by the same shift keeps the expanded squares of far clouds accurate.
    centre = y.mean(0)
    cost = ot.dist((x - centre).numpy(), (y - centre).numpy(), metric="sqeuclidean")
    value, log = ot.emd2([], [], cost, numItermax=10_000_000, log=True)
    if log["warning"]:  # a simplex stopped short is a wrong number, not a detail
        raise RuntimeError(f"wasserstein_squared: {log['warning']}")
    return float(value)


def _import_pot() -> ModuleType:
    # POT imports GeomLoss where it is installed, and with it KeOps, which greets on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        import ot
    return ot


@dataclass(frozen=True)
class ModeCoverage:
    """How a cloud is spread over known modes.

    Attributes:
        masses: Share of the cloud at each mode, ``(K,)``; each sample counts for its nearest
            centre, and only within the radius.
        stray: Share of the cloud near no mode.
        covered: Number of modes that hold at least half of an even share.
    """

    masses: Tensor
    stray: float
    covered: int


def mode_coverage(x: Tensor, modes: Tensor, radius: float) -> ModeCoverage:
    """Counts the mass of a cloud at known modes.

    Args:
        x: Samples ``(N, d)``.
        modes: Centres ``(K, d)``.
        radius: Distance up to which a sample counts for its nearest centre.

    Returns:
        Masses, stray mass and the number of covered modes (mass ≥ 1/2K).

    Raises:
        ShapeError: The clouds are empty or live in different dimensions.
        NonFiniteError: A coordinate is NaN or infinite.
        ArgumentError: ``radius`` is not positive.

    Example:
        >>> modes = torch.tensor([[-1.0], [1.0]])
        >>> mode_coverage(torch.tensor([[-1.1], [0.9], [1.0], [9.0]]), modes, 0.5).masses
        tensor([0.2500, 0.5000])
    """
    _check_pair(x, modes, "modes")
    if not radius > 0:
        raise ArgumentError("radius", radius, "a positive distance")
    distance, mode = nearest(x.detach(), modes.to(x))
    counts = torch.bincount(mode[distance <= radius], minlength=len(modes))
    masses = counts.to(torch.float32) / len(x)
    return ModeCoverage(
        masses=masses,
        stray=float(1 - masses.sum().clamp(max=1)),
        covered=int((masses >= 0.5 / len(modes)).sum()),
    )


def class_wasserstein_squared(
    x: Tensor, x_labels: Tensor, y: Tensor, y_labels: Tensor, *, cap: int = 2000
) -> dict[int, float]:
    """W₂² between the parts of two labelled clouds, class by class.

    Args:
        x: ``(N, d)``.
        x_labels: Classes ``(N,)``.
        y: ``(M, d)``.
        y_labels: Classes ``(M,)``.
        cap: As in `wasserstein_squared`, for each class.

    Returns:
        One number a class of ``y``.

    Raises:
        ArgumentError: A class of ``y`` has no sample in ``x``.

    Example:
        >>> x, labels = torch.zeros(4, 1), torch.tensor([0, 0, 1, 1])
        >>> class_wasserstein_squared(x, labels, x + labels[:, None], labels)
        {0: 0.0, 1: 1.0}
    """
    distances = {}
    for label in torch.unique(y_labels).tolist():
        part = x[x_labels == label]
        if len(part) == 0:
            raise ArgumentError("x_labels", f"no sample of class {label}", "every class of y")
        distances[label] = wasserstein_squared(part, y[y_labels == label], cap=cap)
    return distances


def median_distance(
    x: Tensor, y: Tensor, *, cap: int = 2000, generator: torch.Generator | None = None
) -> float:
    """Median distance between different points of the pooled clouds: the usual bandwidth.

    Args:
        x: ``(N, d)``.
        y: ``(M, d)``.
        cap: Points of each cloud that are looked at; larger ones are subsampled.
        generator: Decides the subsamples; a fixed one if None.

    Raises:
        ShapeError: The clouds are empty or live in different dimensions.
        NonFiniteError: A coordinate is NaN or infinite.

    Example:
        >>> median_distance(torch.zeros(1, 1), torch.tensor([[3.0]]))
        3.0
    """
    _check_pair(x, y, "y")
    parts = [subsample(cloud, cap, generator).detach() for cloud in (x, y)]
    return median_of(torch.cat(parts))


def mmd_squared(
    x: Tensor, y: Tensor, bandwidth: float | None = None, *, unbiased: bool = False
) -> float:
    """Squared maximum mean discrepancy under the Gaussian kernel exp(−‖x−y‖²/2σ²).

    Mean kernel within each cloud minus twice the mean across, streamed: clouds of 10⁵ points fit.

    Args:
        x: ``(N, d)``.
        y: ``(M, d)``.
        bandwidth: σ, a length; the median heuristic (`median_distance`) by default. Compare clouds
            at one bandwidth.
        unbiased: Leaves out the pairs i = j; the estimate may then be negative.

    Raises:
        ShapeError: The clouds are empty or live in different dimensions.
        NonFiniteError: A coordinate is NaN or infinite.
        ArgumentError: ``bandwidth`` is not positive, which its median is not where most points
            coincide.

    Reference:
        Gretton et al., A kernel two-sample test, JMLR 2012, eqs. 3 and 5.

    Example:
        >>> x = torch.zeros(4, 1)
        >>> round(mmd_squared(x, x + 1.0, 1.0), 4)  # 2 − 2·exp(−1/2)
        0.7869
    """
    _check_pair(x, y, "y")
    bandwidth = median_distance(x, y) if bandwidth is None else bandwidth
    if not bandwidth > 0:
        raise ArgumentError("bandwidth", bandwidth, "a positive length")
    x, y = x.detach().double(), y.detach().double()

    def mean(p: Tensor, q: Tensor) -> float:
        kernel = gibbs_kernel(p, q, "half_squared", bandwidth**2)
        uniform = torch.full((len(q),), -math.log(len(q)), dtype=torch.float64, device=q.device)
        value = float(kernel.log_mass(uniform).exp().mean())
        if unbiased and p is q:  # the diagonal is 1
            value = (len(p) * value - 1) / (len(p) - 1) if len(p) > 1 else 0.0
        return value

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance 2 E‖x−y‖ − E‖x−x'‖ − E‖y−y'‖ of two clouds, in units of length.

    Streamed in blocks of rows: memory is linear, time is not (10⁵ points take minutes on a CPU).

    Args:
        x: ``(N, d)``.
        y: ``(M, d)``.

    Raises:
        ShapeError: The clouds are empty or live in different dimensions.
        NonFiniteError: A coordinate is NaN or infinite.

    Reference:
        Székely and Rizzo, Energy statistics, JSPI 2013.

    Example:
        >>> energy_distance(torch.zeros(3, 1), torch.full((2, 1), 2.0))
        4.0
    """
    _check_pair(x, y, "y")
    # About a common centre, so that far clouds keep their digits.
    centre = y.detach().double().mean(0)
    x, y = (z.detach().double() - centre for z in (x, y))
    across, *within = (mean_cost(p, q, euclidean) for p, q in ((x, y), (x, x), (y, y)))
    return float(2 * across - sum(within))
