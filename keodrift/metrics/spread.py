"""Measures that see a cloud too narrow or too close to the data, which W₂² rewards.

Points drawn in a little towards the mean lie closer to fresh data, by W₂², than fresh data do.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from keodrift.checks import check_positive
from keodrift.errors import ArgumentError
from keodrift.metrics.clouds import by_class, check_pair, subsample
from keodrift.reductions import nearest


def variance_ratio(x: Tensor, y: Tensor) -> float:
    """Total variance of generated points over that of real ones: tr Cov(x) / tr Cov(y).

    1 is right, below it the cloud has shrunk. Each covariance is about its own mean, divides by
    N − 1, and is computed in float64.

    Args:
        x: Generated points ``(N, d)``.
        y: Real points ``(M, d)``.

    Returns:
        The ratio, without unit; infinite where only the real points all coincide, NaN where both
        clouds do.

    Raises:
        ShapeError: A cloud has fewer than two points, or they live in different dimensions.
        NonFiniteError: A coordinate is NaN or infinite.

    Example:
        >>> y = torch.tensor([[-2.0], [0.0], [2.0]])
        >>> variance_ratio(y / 2, y)
        0.25
    """
    check_pair(x, y, "y", least=2)
    return float(_total_variance(x) / _total_variance(y))


def _total_variance(points: Tensor) -> Tensor:
    return points.detach().double().var(0).sum()


def nearest_neighbour_test(
    x: Tensor, y: Tensor, *, cap: int = 5000, generator: torch.Generator | None = None
) -> float:
    """Leave-one-out accuracy of the nearest neighbour in telling two clouds apart.

    The share of the pooled points whose nearest other point is of their own cloud: ½ where the
    clouds are indistinguishable, 1 where they lie apart, below ½ where one repeats points of the
    other. Streamed, from differences of coordinates in float64.

    A point equally far from both clouds counts ½. So a cloud that copies the other point by point
    scores 0, for each point's copy is nearer than its own cloud; and clouds that repeat the same
    few values score ½, for no point can tell whose they are.

    A network that knows its training data by heart draws some of them twice, and twins are nearest
    to each other: it scores above ½, the more so the fewer data it has seen, where other real
    points would not. Draw real points with replacement to see how far.

    In high dimension read `variance_ratio` beside it: the points of a shrunken cloud then lie
    nearer to everyone, those of the other cloud too, and the two halves cancel to ½.

    Args:
        x: ``(N, d)``.
        y: ``(M, d)``.
        cap: Points of each cloud that are looked at. The larger cloud is subsampled to the smaller,
            since a cloud of more points would be the nearer by number alone; copies of points that
            are left out are not seen. The time grows like its square.
        generator: Decides the subsamples; a fixed one if None.

    Raises:
        ShapeError: A cloud has fewer than two points, or they live in different dimensions.
        NonFiniteError: A coordinate is NaN or infinite.
        ArgumentError: ``cap`` is below 2.

    Reference:
        Lopez-Paz and Oquab, Revisiting classifier two-sample tests, ICLR 2017, with the classifier
        of Xu et al., An empirical study on evaluation metrics of GANs, 2018; the statistic is
        Schilling's, JASA 1986.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> nearest_neighbour_test(x, x + 9.0), nearest_neighbour_test(x, x)
        (1.0, 0.0)
    """
    check_pair(x, y, "y", least=2)
    check_positive("cap", cap, integer=True)
    if cap < 2:
        raise ArgumentError("cap", cap, "at least two points")
    size = min(len(x), len(y), cap)
    x, y = (subsample(cloud, size, generator).detach().double() for cloud in (x, y))
    surplus = 0.0  # points nearer to their own cloud, less those nearer to the other
    for own, other in ((x, y), (y, x)):
        apart = nearest(own, other)[0] - nearest(own, own, mask_self=True)[0]
        surplus += float(apart.sign().sum())
    return (surplus + 2 * size) / (4 * size)


def class_variance_ratio(
    x: Tensor, x_labels: Tensor, y: Tensor, y_labels: Tensor
) -> dict[int, float]:
    """`variance_ratio` between the parts of two labelled clouds, class by class.

    Args:
        x: Generated points ``(N, d)``.
        x_labels: Classes ``(N,)``.
        y: Real points ``(M, d)``.
        y_labels: Classes ``(M,)``.

    Returns:
        One number a class of ``y``.

    Raises:
        ArgumentError: A class of ``y`` has fewer than two points on either side, or labels are not
            one integer a point.

    Example:
        >>> y, labels = torch.tensor([[0.0], [2.0], [5.0], [9.0]]), torch.tensor([0, 0, 1, 1])
        >>> class_variance_ratio(y * (1 + labels[:, None]), labels, y, labels)
        {0: 1.0, 1: 4.0}
    """
    return by_class(variance_ratio, x, x_labels, y, y_labels, least=2)


def class_nearest_neighbour_test(
    x: Tensor, x_labels: Tensor, y: Tensor, y_labels: Tensor, *, cap: int = 5000
) -> dict[int, float]:
    """`nearest_neighbour_test` between the parts of two labelled clouds, class by class.

    Args:
        x: ``(N, d)``.
        x_labels: Classes ``(N,)``.
        y: ``(M, d)``.
        y_labels: Classes ``(M,)``.
        cap: As in `nearest_neighbour_test`, for each class.

    Returns:
        One number a class of ``y``.

    Raises:
        ArgumentError: A class of ``y`` has fewer than two points on either side, or labels are not
            one integer a point.

    Example:
        >>> x, labels = torch.tensor([[0.0], [1.0], [5.0], [6.0]]), torch.tensor([0, 0, 1, 1])
        >>> class_nearest_neighbour_test(x, labels, x + 9 * labels[:, None], labels)
        {0: 0.0, 1: 1.0}
    """
    metric = partial(nearest_neighbour_test, cap=cap)
    return by_class(metric, x, x_labels, y, y_labels, least=2)
