"""Distances between two clouds: optimal transport, kernel means, energy."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from keodrift.checks import check_positive
from keodrift.costs import euclidean
from keodrift.errors import ArgumentError, RunError
from keodrift.metrics.clouds import by_class, check_pair, subsample
from keodrift.reductions import gibbs_kernel, mean_cost
from keodrift.reductions import median_distance as median_of
from keodrift.transport.exact import import_pot


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
        RunError: The simplex stops short of the optimum.

    Reference:
        Flamary et al., POT: Python Optimal Transport, JMLR 2021 (`ot.emd2`).

    Example:
        >>> x = torch.zeros(3, 2)
        >>> wasserstein_squared(x, x + torch.tensor([3.0, 4.0]))
        25.0
    """
    check_pair(x, y, "y")
    ot = import_pot()
    x, y = (subsample(cloud, cap, generator).detach().to("cpu", torch.float64) for cloud in (x, y))
    # Centring both clouds by the same shift keeps the expanded squares of far clouds accurate.
    centre = y.mean(0)
    cost = ot.dist((x - centre).numpy(), (y - centre).numpy(), metric="sqeuclidean")
    unit = float(cost.max()) or 1.0  # in which the simplex has its tolerance
    cost /= unit
    value, log = ot.emd2([], [], cost, numItermax=10_000_000, log=True)
    if log["warning"]:  # a simplex stopped short is a wrong number, not a detail
        raise RunError(f"wasserstein_squared: {log['warning']}")
    return float(value) * unit


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
        ArgumentError: A class of ``y`` has no sample in ``x``, or labels are not one integer a
            point.

    Example:
        >>> x, labels = torch.zeros(4, 1), torch.tensor([0, 0, 1, 1])
        >>> class_wasserstein_squared(x, labels, x + labels[:, None], labels)
        {0: 0.0, 1: 1.0}
    """
    metric = partial(wasserstein_squared, cap=cap)
    return by_class(metric, x, x_labels, y, y_labels)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Fréchet distance of two clouds: W₂² between the normal laws of their moments.

    ‖m₁ − m₂‖² + tr(S₁ + S₂ − 2(S₁S₂)^½), covariances dividing by N − 1, in float64. Of features
    that a network reads off images it is what is called FID. Few points score too far: two
    samples of one law in d dimensions need many more than d each, so report that floor beside it.

    Args:
        x: ``(N, d)``.
        y: ``(M, d)``.

    Returns:
        The distance, in squared units of length.

    Raises:
        ShapeError: A cloud has fewer than two points, or they live in different dimensions.
        NonFiniteError: A coordinate is NaN or infinite.

    Reference:
        Dowson and Landau, The Fréchet distance between multivariate normal distributions, 1982.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> frechet_distance(x, 3 * x + 1.0)  # 1 + (√2 − 3·√2)²
        9.0
    """
    check_pair(x, y, "y", least=2)
    x, y = x.detach().double(), y.detach().double()
    # RᵀR is a covariance, and tr(S₁S₂)^½ the sum of the singular values of R₁R₂ᵀ.
    r, s = (torch.linalg.qr(z - z.mean(0), mode="r").R / (len(z) - 1) ** 0.5 for z in (x, y))
    shared = torch.linalg.svdvals(r @ s.mT).sum()
    moved = (x.mean(0) - y.mean(0)).square().sum()
    return float((moved + r.square().sum() + s.square().sum() - 2 * shared).clamp_min(0))


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
    check_pair(x, y, "y")
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
    check_pair(x, y, "y")
    bandwidth = median_distance(x, y) if bandwidth is None else bandwidth
    check_positive("bandwidth", bandwidth)
    if not 0 < bandwidth * bandwidth < math.inf:
        raise ArgumentError("bandwidth", bandwidth, "a positive length, its square as well")
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
    check_pair(x, y, "y")
    # About a common centre, so that far clouds keep their digits.
    centre = y.detach().double().mean(0)
    x, y = (z.detach().double() - centre for z in (x, y))
    across, *within = (mean_cost(p, q, euclidean) for p, q in ((x, y), (x, x), (y, y)))
    return float(2 * across - sum(within))
