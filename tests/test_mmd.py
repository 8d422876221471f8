"""Flows of maximum mean discrepancies: what is their own."""

from __future__ import annotations

import flow_reference as flows
import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.errors import OptionError, TemperatureError

F64 = torch.float64


@pytest.mark.parametrize("kernel", flows.KERNELS)
def test_mmd_drift_is_minus_the_gradient_of_half_the_discrepancy(cloud, kernel):
    x, y, k = cloud(0, 9, 2), cloud(1, 12, 2), flows.KERNELS[kernel]
    h = 1.0 if kernel == "energy" else 0.8

    def half_discrepancy(x):
        within, across = k(flows.distances(x, x) / h).mean(), k(flows.distances(x, y) / h).mean()
        return (within - 2 * across) / 2

    v = kd.MMDDrift(None if kernel == "energy" else h, kernel=kernel)(x, y)
    torch.testing.assert_close(v, -len(x) * flows.slope(half_discrepancy, x), rtol=0, atol=1e-13)


def test_the_energy_pulls_from_any_distance(cloud):
    """Exponentials that are all 1 leave the weights exact, in float32 too."""
    x, y = cloud(0, 9, 2), 1e3 * cloud(1, 12, 2)
    for dtype, error in ((F64, 1e-14), (torch.float32, 1e-6)):
        got = kd.MMDDrift(kernel="energy")(x.to(dtype), y.to(dtype)).double()
        p = ref.problem(x.to(dtype), y.to(dtype), 1.0)
        torch.testing.assert_close(got, flows.mmd(p, kernel="energy"), rtol=0, atol=error)


def test_a_bandwidth_whose_unit_overflows_is_refused():
    x = 1e10 * torch.eye(3)
    with pytest.raises(TemperatureError, match="bandwidth: got 1e-15"):
        kd.MMDDrift(1e-15)(x, x)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: kd.MMDDrift(), "bandwidth"),
        (lambda: kd.MMDDrift(()), "bandwidth"),
        (lambda: kd.MMDDrift([1.0, 0.0]), "bandwidth"),
        (lambda: kd.MMDDrift("one"), "bandwidth"),
        (lambda: kd.MMDDrift(1.0, kernel="energy"), "bandwidth"),
        (lambda: kd.MMDDrift(1.0, kernel="cosine"), "kernel"),
        (lambda: kd.MMDDrift(1.0, backend="gpu"), "backend"),
    ],
)
def test_nonsense_is_refused_when_built(make, argument):
    with pytest.raises(OptionError) as caught:
        make()
    assert caught.value.argument == argument
