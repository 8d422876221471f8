"""Metrics against values known by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch

from keodrift.errors import ArgumentError, DeviceError, DtypeError, NonFiniteError, ShapeError
from keodrift.metrics import (
    class_nearest_neighbour_test,
    class_variance_ratio,
    class_wasserstein_squared,
    energy_distance,
    frechet_distance,
    median_distance,
    mmd_squared,
    mode_coverage,
    nearest_neighbour_test,
    subsample,
    variance_ratio,
    wasserstein_squared,
)
from keodrift.reductions import nearest


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_w2_of_a_translation_is_its_squared_length():
    x = torch.randn(60, 3, generator=seeded())
    shift = torch.tensor([1.0, -2.0, 2.0])
    order = torch.randperm(60, generator=seeded())
    assert wasserstein_squared(x, (x + shift)[order]) == pytest.approx(9.0, rel=1e-5)
    assert wasserstein_squared(x, x[order]) == pytest.approx(0.0, abs=1e-10)


def test_w2_on_the_line_is_the_sorted_matching():
    x, y = (torch.randn(80, 1, generator=seeded(s), dtype=torch.float64) for s in (0, 1))
    expected = float((x.sort(0).values - y.sort(0).values).square().mean())
    assert wasserstein_squared(x, y) == pytest.approx(expected, rel=1e-9)


def test_w2_between_clouds_of_different_sizes():
    x, y = torch.tensor([[0.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    assert wasserstein_squared(x, y) == pytest.approx(14 / 3)


def test_w2_keeps_its_digits_far_from_the_origin():
    x = torch.randn(40, 2, generator=seeded(), dtype=torch.float64)
    y = torch.randn(40, 2, generator=seeded(1), dtype=torch.float64)
    assert wasserstein_squared(x + 1e6, y + 1e6) == pytest.approx(
        wasserstein_squared(x, y), rel=1e-6
    )


def test_cap_subsamples_without_repetition_and_deterministically():
    x = torch.arange(100.0).unsqueeze(1)
    part = subsample(x, 30)
    assert len(part) == 30 and len(part.unique()) == 30
    assert torch.equal(part, subsample(x, 30))
    assert not torch.equal(part, subsample(x, 30, seeded(9)))
    assert subsample(x, 100) is x
    assert wasserstein_squared(x, x, cap=30) == wasserstein_squared(x, x, cap=30)


def test_coverage_counts_nearest_modes_within_the_radius():
    modes = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 9.0]])
    x = torch.tensor([[-2.1, 0.0], [-1.9, 0.1], [2.0, 0.2], [0.1, 0.0]])
    got = mode_coverage(x, modes, 0.5)
    assert got.masses.tolist() == [0.5, 0.25, 0.0]
    assert got.stray == pytest.approx(0.25)
    assert got.covered == 2
    assert got.nearest.tolist() == [0.5, 0.5, 0.0]
    assert got.wrong_mass == pytest.approx((1 / 6 + 1 / 6 + 1 / 3) / 2)


def test_wrong_mass_counts_every_point_for_its_nearest_mode():
    modes = torch.tensor([[-1.0], [1.0]])
    even, one, far = ([[-1.0], [1.0]], [[1.0], [1.0]], [[-9.0], [9.0], [9.0], [9.0]])
    found = [mode_coverage(torch.tensor(x), modes, 0.5).wrong_mass for x in (even, one, far)]
    assert found == [0.0, 0.5, 0.25]


def test_class_w2_keeps_classes_apart():
    x, labels = torch.zeros(4, 1), torch.tensor([0, 1, 0, 1])
    y, y_labels = torch.tensor([[3.0], [1.0]]), torch.tensor([1, 0])
    assert class_wasserstein_squared(x, labels, y, y_labels) == {0: 1.0, 1: 9.0}
    with pytest.raises(ArgumentError, match="class 2"):
        class_wasserstein_squared(x, labels, y, torch.tensor([2, 0]))


def test_refusals_name_the_argument():
    x = torch.zeros(3, 2)
    with pytest.raises(ShapeError, match="y: got"):
        wasserstein_squared(x, torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="x: got"):
        wasserstein_squared(torch.zeros(0, 2), x)
    with pytest.raises(ArgumentError, match="cap: got 0"):
        wasserstein_squared(x, x, cap=0)
    with pytest.raises(ArgumentError, match="radius"):
        mode_coverage(x, x, 0.0)


@pytest.mark.parametrize(
    "metric",
    [
        wasserstein_squared,
        median_distance,
        mmd_squared,
        energy_distance,
        variance_ratio,
        nearest_neighbour_test,
        partial(mode_coverage, radius=1.0),
    ],
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_points_that_are_not_finite_are_refused(metric, bad):
    x = torch.zeros(3, 2)
    broken = x.index_fill(0, torch.tensor(1), bad)
    with pytest.raises(NonFiniteError, match="^x: got 2 NaN or infinite"):
        metric(broken, x)
    with pytest.raises(NonFiniteError, match="got 2 NaN or infinite"):
        metric(x, broken)


def kernel_mean(x, y, bandwidth):
    return torch.exp(-(torch.cdist(x, y) ** 2) / (2 * bandwidth**2))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_mmd_is_its_definition(cloud, d):
    x, y = cloud(0, 40, d) + 0.5, cloud(1, 50, d)
    for bandwidth in (0.3, 2.0):
        k_xx, k_yy, k_xy = (kernel_mean(*pair, bandwidth) for pair in ((x, x), (y, y), (x, y)))
        biased = k_xx.mean() + k_yy.mean() - 2 * k_xy.mean()
        assert abs(mmd_squared(x, y, bandwidth) - float(biased)) <= 1e-12
        inner = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in (k_xx, k_yy)]
        unbiased = float(inner[0] + inner[1] - 2 * k_xy.mean())
        assert abs(mmd_squared(x, y, bandwidth, unbiased=True) - unbiased) <= 1e-12
    pooled = torch.pdist(torch.cat([x, y]))
    assert median_distance(x, y) == float(pooled.median())
    assert mmd_squared(x, y) == mmd_squared(x, y, float(pooled.median()))


def test_mmd_streams_large_clouds(cloud):
    """Two large draws of one law score what their sizes leave."""
    x, y = cloud(0, 30_000, 2), cloud(1, 30_000, 2)
    value = mmd_squared(x, y, 0.5)
    # Between two draws of one law the mean is (2/N)(1 − E k) and nothing else.
    expected = 2 / 30_000 * (1 - 1 / (1 + 2 / 0.25))
    assert 0 < value < 5 * expected
    assert value > 0.2 * expected


def test_mmd_refuses_a_bandwidth_of_zero():
    with pytest.raises(ArgumentError, match="bandwidth"):
        mmd_squared(torch.zeros(4, 2), torch.zeros(4, 2))


@pytest.mark.parametrize("d", [1, 3])
def test_energy_distance_is_its_definition(resized, cloud, d):
    x, y = cloud(0, 40, d) + 1e4, cloud(1, 50, d) + 1e4

    def mean(p, q):
        return (p[:, None] - q[None]).square().sum(-1).sqrt().mean()

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert abs(energy_distance(x, y) - float(expected)) <= 1e-9
    resized(held=100)
    assert abs(energy_distance(x, y) - float(expected)) <= 1e-9


def test_modes_far_from_the_origin_are_counted_as_near_it():
    modes = torch.arange(30.0)[:, None].expand(30, 2)
    x = modes.repeat(2, 1) + 0.25
    near, far = (mode_coverage(x + shift, modes + shift, 0.5) for shift in (0, 8192))
    assert near.covered == far.covered == 30 and far.stray == 0
    assert torch.equal(near.masses, far.masses)


@pytest.mark.parametrize("d", [1, 2, 7])
def test_variance_ratio_is_its_definition(cloud, d):
    x, y = cloud(0, 30, d) * 0.7 + 3, cloud(1, 50, d)

    def trace(points):
        return sum(float(((c - c.sum() / len(c)) ** 2).sum()) / (len(c) - 1) for c in points.mT)

    expected = trace(x) / trace(y)
    assert variance_ratio(x, y) == pytest.approx(expected, rel=1e-12)
    assert variance_ratio(x, x) == 1 and variance_ratio(y / 2, y) == pytest.approx(0.25, rel=1e-12)
    far = (x.float() + 2**12, y.float() + 2**12)  # what float32 leaves of the points is exact
    assert variance_ratio(*far) == pytest.approx(trace(far[0].double()) / trace(far[1].double()))
    turn = torch.linalg.qr(cloud(2, d, d))[0]
    assert variance_ratio(x @ turn, y @ turn + 5) == pytest.approx(expected, rel=1e-12)


def test_points_that_coincide_have_no_variance_at_all():
    x, point = torch.tensor([[0.0], [1.0]]), torch.full((1000, 1), 0.1)
    assert variance_ratio(point, x) == 0
    assert variance_ratio(x, point) == math.inf
    assert math.isnan(variance_ratio(point, point))


def accuracy(x, y):
    """The nearest other point of the pooled clouds, one by one; ties between clouds are halves."""
    points = [(tuple(p), cloud) for cloud, part in enumerate((x, y)) for p in part.tolist()]
    right = 0.0
    for i, (p, mine) in enumerate(points):
        others = [(math.dist(p, q), c) for j, (q, c) in enumerate(points) if j != i]
        owners = {c for distance, c in others if distance == min(others)[0]}
        right += (mine in owners) / len(owners)
    return right / len(points)


@pytest.mark.parametrize("d", [1, 2, 7])
@pytest.mark.parametrize("block", [4, 400, 1 << 22])
def test_nearest_neighbours_are_its_definition(resized, cloud, d, block):
    resized(held=block)
    x, y = cloud(0, 40, d) * 0.8, cloud(1, 40, d)
    assert nearest_neighbour_test(x, y) == nearest_neighbour_test(y, x) == accuracy(x, y)
    grid = [(z * 1.5).round() for z in (x, y)]  # duplicates within and across, and many ties
    assert nearest_neighbour_test(*grid) == pytest.approx(accuracy(*grid), abs=1e-12)
    turn = torch.linalg.qr(cloud(2, d, d))[0]
    assert nearest_neighbour_test(x @ turn + 3, y @ turn + 3) == accuracy(x, y)


def test_nearest_leaves_out_the_point_itself(resized, cloud):
    x = cloud(0, 30, 3)
    x[7] = x[3]
    pairs = (x[:, None] - x[None]).square().sum(-1).sqrt()
    pairs[range(30), range(30)] = torch.inf
    for block in (4, 400, 1 << 22):  # one row at a time, several, all
        resized(held=block)
        for exact, error in ((True, 1e-14), (False, 1e-7)):
            distance, index = nearest(x, x, exact=exact, mask_self=True)
            assert (distance - pairs.min(1).values).abs().max() <= error
            assert torch.equal(index, pairs.argmin(1))
    assert nearest(x[:1], x[:1], mask_self=True)[0] == torch.inf


def test_nearest_neighbours_of_one_law_score_a_half():
    x, y = torch.randn(2, 2000, 3, generator=seeded()).unbind()
    error = 0.5 / math.sqrt(4000)
    assert abs(nearest_neighbour_test(x, y) - 0.5) < 3 * error
    assert nearest_neighbour_test(0.7 * x, y) > 0.5 + 5 * error
    assert nearest_neighbour_test(x + 100, y) == 1
    huge = 2.0**100  # a power of two: float32 keeps its digits, but not the squares
    assert nearest_neighbour_test(huge * x, huge * y) == nearest_neighbour_test(x, y)
    assert variance_ratio(huge * x, huge * y) == variance_ratio(x, y)


def test_in_high_dimension_only_the_variance_sees_a_shrunken_cloud():
    x, y = torch.randn(2, 500, 64, generator=seeded()).unbind()
    assert abs(nearest_neighbour_test(0.6 * x, y) - 0.5) < 0.03
    assert variance_ratio(0.6 * x, y) == pytest.approx(0.36, rel=0.02)
    assert wasserstein_squared(0.6 * x, y) < 0.8 * wasserstein_squared(x, y)


def test_duplicates_across_and_within_clouds():
    x = torch.randn(50, 2, generator=seeded())
    order = torch.randperm(50, generator=seeded(1))
    assert nearest_neighbour_test(x, x[order]) == 0  # every copy gives its point away
    atoms = torch.tensor([[0.0], [1.0], [5.0]]).repeat(4, 1)
    assert nearest_neighbour_test(atoms, atoms) == 0.5  # nobody can tell
    assert nearest_neighbour_test(torch.zeros(4, 1), torch.ones(4, 1)) == 1
    # Collapsed on one of two atoms: that atom's points are of either cloud, the other's of one.
    assert nearest_neighbour_test(atoms[:1].expand(8, 1), atoms[:2].repeat(4, 1)) == 0.625


def test_the_larger_cloud_is_subsampled_to_the_smaller_and_both_to_the_cap():
    x, y = (torch.randn(n, 2, generator=seeded(n)) for n in (60, 200))
    assert nearest_neighbour_test(x, y) == accuracy(x, subsample(y, 60))
    assert nearest_neighbour_test(y, x, cap=9) == accuracy(subsample(y, 9), subsample(x, 9))
    random = seeded(4)
    expected = accuracy(subsample(x, 9, random), subsample(y, 9, random))
    assert nearest_neighbour_test(x, y, cap=9, generator=seeded(4)) == expected


def test_measures_of_spread_class_by_class():
    labels = torch.arange(90) % 3
    x, y = torch.randn(2, 90, 2, generator=seeded()).unbind()
    parts = {k: (x[labels == k], y[labels == k]) for k in range(3)}
    one = {k: variance_ratio(*pair) for k, pair in parts.items()}
    two = {k: nearest_neighbour_test(*pair, cap=20) for k, pair in parts.items()}
    assert class_variance_ratio(x, labels, y, labels) == one
    assert class_nearest_neighbour_test(x, labels, y, labels, cap=20) == two
    few = torch.tensor([0, 0, 1])
    for metric in (class_variance_ratio, class_nearest_neighbour_test):
        with pytest.raises(ArgumentError, match="^y_labels: got 1 sample of class 1, needs 2"):
            metric(x[:4], torch.tensor([0, 0, 1, 1]), y[:3], few)
        with pytest.raises(ArgumentError, match="^x_labels: got 1 sample of class 1, needs 2"):
            metric(x[:3], few, y[:4], torch.tensor([0, 0, 1, 1]))
        with pytest.raises(ShapeError, match="^y_labels"):
            metric(x[:3], few, y[:4], few)


@pytest.mark.parametrize("metric", [variance_ratio, nearest_neighbour_test])
def test_measures_of_spread_need_two_points_of_one_dimension(metric):
    x = torch.zeros(3, 2)
    for bad in (x[:1], x[:0], x[:, :1], x[0]):
        with pytest.raises(ShapeError, match="^y: got .*M ≥ 2"):
            metric(x, bad)
    with pytest.raises(ShapeError, match="^x: got .*N ≥ 2"):
        metric(x[:1], x)
    with pytest.raises(ArgumentError, match="^cap: got 1"):
        nearest_neighbour_test(x, x, cap=1)


def test_the_frechet_distance_is_that_of_normal_laws(cloud):
    x, y = cloud(0, 40, 3), cloud(1, 50, 3) @ cloud(2, 3, 3) + 2
    s, t = (np.cov(z.numpy().T) for z in (x, y))
    root = scipy.linalg.sqrtm(s @ t).real
    mean = float((x.mean(0) - y.mean(0)).square().sum())
    assert frechet_distance(x, y) == pytest.approx(mean + np.trace(s + t - 2 * root))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    # It sees moments alone, and fewer points than dimensions are no obstacle.
    assert frechet_distance(x, x + 3) == pytest.approx(27)
    few = cloud(3, 5, 9)
    assert frechet_distance(few, 2 * few) == pytest.approx(
        float(few.mean(0).square().sum() + few.var(0).sum())
    )
    assert frechet_distance(x.float() + 1e4, y.float() + 1e4) == pytest.approx(
        frechet_distance(x, y), rel=1e-2
    )
    with pytest.raises(ShapeError, match="y: got"):
        frechet_distance(x, y[:, :2])


@pytest.mark.parametrize("scale", [1e-12, 1e-8, 1e6])
def test_w2_has_no_unit_of_its_own(cloud, scale):
    x, y = cloud(0, 200, 2), cloud(1, 200, 2)
    expected = wasserstein_squared(x, y)
    found = wasserstein_squared(scale * x, scale * y)
    assert found / scale**2 == pytest.approx(expected, rel=1e-6)


def test_without_stray_points_nothing_is_stray():
    modes = torch.arange(7.0)[:, None]
    for count in range(1, 60):
        x = modes[torch.randint(7, (count,), generator=seeded(count))]
        assert mode_coverage(x, modes, 0.1).stray == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_modes_are_counted_in_any_dtype(dtype):
    modes = torch.tensor([[-2], [2]])
    x = torch.tensor([[-2], [2], [2], [9]]).to(dtype)
    found = mode_coverage(x, modes.to(dtype), 0.5)
    assert found.masses.tolist() == [0.25, 0.5] and found.stray == 0.25


@pytest.mark.parametrize(
    "x", [np.zeros((3, 2)), [[0.0, 1.0]], torch.zeros(3, 2, dtype=torch.cfloat)]
)
def test_what_is_no_cloud_of_real_numbers_is_refused(x):
    with pytest.raises(ArgumentError, match="^x"):
        wasserstein_squared(x, torch.zeros(3, 2))


def test_options_of_measures_are_checked():
    x = torch.zeros(9, 2)
    with pytest.raises(ArgumentError, match="^cap"):
        wasserstein_squared(x, x, cap=2.5)
    with pytest.raises(ArgumentError, match="^bandwidth"):
        mmd_squared(x, x, 1e-170)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda x: mmd_squared(x, x, 1e200), ArgumentError, "^bandwidth: got 1e[+]200"),
        (lambda x: mmd_squared(x, x, "a"), ArgumentError, "^bandwidth: got 'a'"),
        (lambda x: mode_coverage(x, x, "a"), ArgumentError, "^radius: got 'a'"),
        (lambda x: nearest_neighbour_test(x, x, cap="a"), ArgumentError, "^cap: got 'a'"),
        (lambda x: nearest_neighbour_test(x, x, generator=3), ArgumentError, "^generator: got int"),
        (lambda x: energy_distance(x.to_sparse(), x), DtypeError, "^x: got torch.sparse_coo"),
        (lambda x: energy_distance(x, x.to("meta")), DeviceError, "^y: got a meta tensor"),
        (
            lambda x: energy_distance(1e200 * x.double(), x),
            NonFiniteError,
            "^x: got coordinates up",
        ),
    ],
)
def test_what_no_measure_can_answer_is_refused_by_name(call, error, said):
    with pytest.raises(error, match=said):
        call(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))
