"""Parzen scores and the flow of their KL divergence: what is their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import keodrift as kd
from keodrift.costs import mahalanobis
from keodrift.errors import ArgumentError, OptionError

F64 = torch.float64
TAU = 0.7


@pytest.mark.parametrize("form", ["score", "flow"])
@pytest.mark.parametrize("cost", ["half_squared", "squared"])
def test_masses_of_kl_are_the_scores_or_their_variance_times_them(cloud, form, cost):
    x, y = cloud(0, 2, 9, 2), cloud(1, 2, 12, 2)
    for relative in (False, True):
        how = {"form": form, "relative": relative, "cost": cost}
        scores = kd.KLDrift(TAU, masses="gradient", **how).fit(x, y)
        unit = kd.KLDrift(TAU, **how).fit(x, y)
        base = scores if form == "score" else scores.base
        tau = torch.as_tensor(base.data.tau).reshape(-1, 1, 1)
        variance = tau if cost == "half_squared" else tau / 2
        torch.testing.assert_close(variance * scores(), unit())
        slopes = kd.KLDrift(TAU, masses="gradient", velocity="gradient", **how)
        torch.testing.assert_close(slopes(x, y), scores())
    assert len(tau) == 2


def test_the_score_form_is_the_one_sided_drift(cloud):
    x, y = cloud(0, 9, 2), cloud(1, 12, 2)
    got = kd.KLDrift(TAU, mask_self=True)(x, y)
    torch.testing.assert_close(got, kd.OneSidedDrift(TAU)(x, y), rtol=0, atol=1e-14)


@pytest.mark.parametrize("cost", ["half_squared", "squared"])
def test_the_flow_smooths_the_score_difference(cost):
    """Against quadrature in one dimension, where the two forms differ."""
    x = torch.tensor([[-1.0], [0.4]], dtype=F64)
    y = torch.tensor([[-0.5], [2.0], [2.5]], dtype=F64)
    z = torch.linspace(-2, 3, 11, dtype=F64)[:, None]
    variance = TAU if cost == "half_squared" else TAU / 2
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = torch.from_numpy(weights / weights.sum())
    score = kd.KLDrift(TAU, cost=cost).fit(x, y)
    around = z + math.sqrt(variance) * torch.from_numpy(nodes)
    exact = score(around.reshape(-1, 1)).reshape(around.shape) @ weights
    field = kd.KLDrift(TAU, cost=cost, form="flow", samples=4096).fit(x, y)
    each = score((z + field.noise[:, 0]).reshape(-1, 1)).reshape(len(z), -1)
    error = each.std(-1) / math.sqrt(field.noise.shape[0])
    assert ((field(z)[:, 0] - exact).abs() < 4 * error).all()
    assert ((score(z)[:, 0] - exact).abs() > 4 * error).any()


def test_silverman_is_the_best_bandwidth_of_a_normal_density():
    y = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    variance = 6.0  # of either coordinate, Σ y²/(M − 1)
    assert kd.silverman_bandwidth(y) == pytest.approx(math.sqrt(variance) * 4 ** (-1 / 6))
    with pytest.raises(ArgumentError, match="coincide"):
        kd.silverman_bandwidth(torch.ones(3, 2))
    with pytest.raises(ArgumentError, match="one cloud"):
        kd.silverman_bandwidth(torch.ones(2, 3, 2))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: kd.KLDrift(1.0, form="path"), "form"),
        (lambda: kd.KLDrift(1.0, masses="all"), "masses"),
        (lambda: kd.KLDrift(1.0, samples=0), "samples"),
        (lambda: kd.KLDrift(1.0, samples=3), "samples"),
        (lambda: kd.KLDrift(1.0, cost="cosine"), "cost"),
        (lambda: kd.KLDrift(1.0, cost=mahalanobis(torch.ones(2))), "cost"),
        (lambda: kd.KLDrift(1.0, generator=-1), "generator"),
        (lambda: kd.KLDrift(1.0, generator=True), "generator"),
        (lambda: kd.KLDrift(1.0, cost="euclidean"), "cost"),
        (lambda: kd.KLDrift(1.0, form="flow", mask_self=True), "mask_self"),
    ],
)
def test_nonsense_is_refused_when_built(make, argument):
    with pytest.raises(OptionError) as caught:
        make()
    assert caught.value.argument == argument


def test_scores_fitted_in_inference_mode_are_differentiable(cloud):
    with torch.inference_mode():
        field = kd.KLDrift(0.5, masses="gradient").fit(cloud(0, 9, 2), cloud(1, 9, 2))
    q = cloud(2, 3, 2).requires_grad_()
    field(q).sum().backward()
    assert bool(q.grad.isfinite().all()) and bool((q.grad != 0).all())
