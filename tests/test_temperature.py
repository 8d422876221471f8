"""Effective neighbours: entropies beside their definition, and the search for a temperature."""

from __future__ import annotations

import math
import warnings

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.errors import ArgumentError, ShapeError
from keodrift.temperature import effective_neighbours, row_entropy, tau_for_neighbours

DRIFTS = {
    "one-sided": lambda **o: kd.OneSidedDrift(mask_self=False, **o),
    "two-sided": lambda **o: kd.TwoSidedDrift(mask_self=False, **o),
    "sinkhorn": lambda **o: kd.SinkhornDrift(tol=1e-3, max_half_steps=10_000, **o),
}


@pytest.mark.parametrize("cost", ["half_squared", "squared", "euclidean", ref.student])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("kind", DRIFTS)
def test_entropy_is_that_of_the_softmax(cloud, kind, backend, cost):
    x, y = cloud(0, 20, 2), cloud(1, 30, 2)
    weights = torch.ones(30).double()
    weights[::5] = 0  # an atom without weight is no neighbour
    field = DRIFTS[kind](tau=0.7, cost=cost, backend=backend).fit(x, y, y_weights=weights)
    name = cost if isinstance(cost, str) else "student"
    rows = ref.softmax(field.data.bias - ref.pairs(x, y, name) / 0.7)
    expected = -torch.special.xlogy(rows, rows).sum(-1)
    found = row_entropy(field.data, x)
    # The central difference errs by its step squared, times the third derivative.
    assert (found - expected).abs().max() <= 2e-3
    count = effective_neighbours(field)
    assert abs(float(count) / math.exp(float(expected.mean())) - 1) <= 2e-3


def test_limits(cloud):
    x, y = cloud(0, 10, 3), cloud(1, 25, 3)
    hot = effective_neighbours(kd.OneSidedDrift(tau=1e6).fit(x, y))
    cold = effective_neighbours(kd.OneSidedDrift(tau=1e-4).fit(x, y))
    assert abs(float(hot) - 25) <= 1e-2 and abs(float(cold) - 1) <= 1e-2


@pytest.mark.parametrize("kind", DRIFTS)
@pytest.mark.parametrize("wished", [1.5, 5.0, 60.0])
@pytest.mark.parametrize("begin", [1e-3, 1.0, 1e3])
def test_search_finds_the_temperature(cloud, kind, wished, begin):
    x, y = cloud(0, 80, 2, dtype=torch.float32), cloud(1, 100, 2, dtype=torch.float32)
    drift = DRIFTS[kind](tau=begin)
    tau = tau_for_neighbours(drift, x, y, wished)
    found = float(effective_neighbours(DRIFTS[kind](tau=tau).fit(x, y)))
    assert abs(found / wished - 1) <= 0.025


@pytest.mark.parametrize("neighbours", [0.5, 1.0, 100.0, 200.0, float("nan")])
def test_impossible_numbers_are_refused(cloud, neighbours):
    with pytest.raises(ArgumentError, match="neighbours"):
        tau_for_neighbours(kd.OneSidedDrift(tau=1.0), cloud(0, 9, 2), cloud(1, 100, 2), neighbours)


def test_batches_of_clouds_are_refused(cloud):
    with pytest.raises(ShapeError, match=r"^y: got \(2, 100, 2\)"):
        tau_for_neighbours(kd.OneSidedDrift(tau=1.0), cloud(0, 2, 9, 2), cloud(1, 2, 100, 2), 5.0)


@pytest.mark.parametrize("cost", ["half_squared", "euclidean", "student"])
@pytest.mark.parametrize("rho", [1e-5, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_at_every_temperature(cloud, cost, rho, dtype):
    x, y = cloud(0, 20, 2, dtype=dtype), cloud(1, 25, 2, dtype=dtype)
    tau = rho * ref.mean_cost(x, y, cost)
    field = kd.SinkhornDrift(tau, cost=ref.OWN.get(cost, cost), half_steps=9).fit(x, y)
    rows = ref.softmax(ref.log_kernel(x, y, cost, tau) + field.data.bias)
    entropy = -torch.special.xlogy(rows, rows).sum(-1).mean()
    assert float(kd.effective_neighbours(field)) == pytest.approx(float(entropy.exp()), rel=2e-3)


def test_numbers_that_no_temperature_reaches_are_refused(cloud):
    x = cloud(0, 50, 2)
    with pytest.raises(ArgumentError, match="^neighbours"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tau_for_neighbours(kd.SinkhornDrift(1.0), x[:1], x, 5.0)  # one row holds all data
    twice = (cloud(1, 20, 2, dtype=torch.float32) + 1e6).repeat(2, 1)
    with pytest.raises(ArgumentError, match="^neighbours"):
        tau_for_neighbours(kd.OneSidedDrift(1.0), twice, twice, 1.5)
