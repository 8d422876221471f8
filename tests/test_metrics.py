"""Metrics against values known by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from keodrift.errors import ArgumentError, NonFiniteError, ShapeError
from keodrift.metrics import (
    class_wasserstein_squared,
    energy_distance,
    median_distance,
    mmd_squared,
    mode_coverage,
    subsample,
    wasserstein_squared,
)
from keodrift.reductions import distances


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
    x = torch.tensor([[-2.1, 0.0], [-1.9, 0.1], [2.0, 0.2], [0.0, 0.0]])
    got = mode_coverage(x, modes, 0.5)
    assert got.masses.tolist() == [0.5, 0.25, 0.0]
    assert got.stray == pytest.approx(0.25)
    assert got.covered == 2


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
def test_energy_distance_is_its_definition(monkeypatch, cloud, d):
    x, y = cloud(0, 40, d) + 1e4, cloud(1, 50, d) + 1e4

    def mean(p, q):
        return (p[:, None] - q[None]).square().sum(-1).sqrt().mean()

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert abs(energy_distance(x, y) - float(expected)) <= 1e-9
    monkeypatch.setattr(distances, "BLOCK", 100)
    assert abs(energy_distance(x, y) - float(expected)) <= 1e-9


def test_modes_far_from_the_origin_are_counted_as_near_it():
    modes = torch.arange(30.0)[:, None].expand(30, 2)
    x = modes.repeat(2, 1) + 0.25
    near, far = (mode_coverage(x + shift, modes + shift, 0.5) for shift in (0, 8192))
    assert near.covered == far.covered == 30 and far.stray == 0
    assert torch.equal(near.masses, far.masses)
