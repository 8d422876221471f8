"""The Sinkhorn proxy: what is its own."""

from __future__ import annotations

import math

import flow_reference as flows
import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.errors import OptionError

F64 = torch.float64
TAU = 0.7


@pytest.mark.parametrize("mask", [False, True])
def test_masks_of_proxy_and_score(cloud, mask):
    x, y = cloud(0, 7, 3), cloud(1, 10, 3)
    p = ref.problem(x, y, TAU, mask=mask)
    for drift, expected in ((kd.SinkhornProxyDrift, flows.proxy), (kd.KLDrift, flows.score)):
        got = drift(TAU, mask_self=mask)(x, y)
        torch.testing.assert_close(got, expected(p), rtol=0, atol=1e-10)


@pytest.mark.parametrize("cost", ["squared", "euclidean", "student"])
def test_the_proxy_of_any_cost(cloud, cost):
    x, y, z = cloud(0, 7, 3), cloud(1, 10, 3), cloud(2, 5, 3)
    field = kd.SinkhornProxyDrift(TAU, cost=ref.OWN.get(cost, cost)).fit(x, y)
    p = ref.problem(x, y, TAU, mask=True)
    torch.testing.assert_close(field(), flows.proxy(p, cost=cost), rtol=0, atol=1e-10)
    torch.testing.assert_close(field(z), flows.proxy(p, z, cost=cost), rtol=0, atol=1e-10)


def test_a_lone_masked_particle_has_no_repulsion_of_its_own():
    v = kd.SinkhornProxyDrift(1.0)(torch.zeros(1, 2), torch.ones(3, 2))
    assert torch.isfinite(v).all()


def test_far_modes_are_not_seen_by_proxy_and_score():
    distance, tau, w_p, w_q = 4.0, 1.0, 0.6, 0.3
    kappa = math.exp(-(distance**2) / (2 * tau))
    atoms = torch.tensor([[0.0], [distance]], dtype=F64)
    weights = {
        "x_weights": torch.tensor([w_q, 1 - w_q]),
        "y_weights": torch.tensor([w_p, 1 - w_p]),
    }
    bracket = -distance * kappa * (w_p / (1 - w_p) - w_q / (1 - w_q))
    seen = kd.KLDrift(tau)(atoms, atoms, **weights)[1, 0]
    assert float(seen) == pytest.approx(bracket, rel=10 * kappa)
    proxy = kd.SinkhornProxyDrift(tau, population_scaling=True, mask_self=False)
    seen = proxy(atoms, atoms, **weights)[1, 0]
    assert float(seen) == pytest.approx(math.sqrt((1 - w_p) / w_q) * bracket, rel=10 * kappa)


def test_population_scaling_takes_the_batch_size_out(cloud):
    x, y = cloud(0, 40, 2), cloud(1, 50, 2)
    four = torch.cat([y] * 4)
    plain, scaled = (
        kd.SinkhornProxyDrift(TAU, population_scaling=s, mask_self=False) for s in (False, True)
    )
    torch.testing.assert_close(scaled(x, four), scaled(x, y), rtol=1e-10, atol=0)
    torch.testing.assert_close(plain(x, four), 2 * plain(x, y), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: kd.SinkhornProxyDrift(1.0, population_scaling=1), "population_scaling"),
    ],
)
def test_nonsense_is_refused_when_built(make, argument):
    with pytest.raises(OptionError) as caught:
        make()
    assert caught.value.argument == argument
