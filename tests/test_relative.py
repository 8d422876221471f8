"""Temperatures in units of the mean cost of each problem."""

from __future__ import annotations

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.costs import as_cost
from keodrift.errors import OptionError
from keodrift.reductions import expected_cost
from keodrift.temperature import effective_neighbours

F64 = torch.float64
DRIFTS = {
    "one-sided": (kd.OneSidedDrift, {}),
    "split": (kd.TwoSidedDrift, {}),
    "joint": (kd.TwoSidedDrift, {"form": "joint"}),
    "fixed": (kd.SinkhornDrift, {"half_steps": 7}),
    "converged": (kd.SinkhornDrift, {"tol": 1e-9}),
    "relaxed": (kd.SinkhornDrift, {"tol": 1e-9, "reach": 0.5}),
    "row masses": (kd.SinkhornDrift, {"tol": 1e-9, "reach": 0.5, "masses": "gradient"}),
}
every_drift = pytest.mark.parametrize(("kind", "how"), DRIFTS.values(), ids=DRIFTS)


def unit_of(x, y, z, cost="half_squared"):
    return float(torch.cat([ref.pairs(x, y, cost), ref.pairs(x, z, cost)], -1).mean())


def absolute(kind, how, unit, **options):
    scaled = {name: unit * value if name == "reach" else value for name, value in how.items()}
    return kind(0.1 * unit, **scaled, **options)


@every_drift
@pytest.mark.parametrize("cost", ["half_squared", "euclidean"])
@pytest.mark.parametrize("others", ["self", "model", "negatives"])
def test_a_relative_temperature_is_a_share_of_the_mean_cost(cloud, kind, how, cost, others):
    x, y, more = cloud(0, 9, 2), cloud(1, 12, 2) + 1, cloud(2, 7, 2)
    given = {} if others == "self" else {others: more}
    z = {"self": x, "model": more, "negatives": torch.cat([x, more])}[others]
    expected = absolute(kind, how, unit_of(x, y, z, cost), cost=cost).fit(x, y, **given)
    found = kind(0.1, relative=True, cost=cost, **how).fit(x, y, **given)
    torch.testing.assert_close(found(), expected(), atol=1e-7, rtol=1e-7)
    q = cloud(3, 4, 2)
    torch.testing.assert_close(found(q), expected(q), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(effective_neighbours(found), effective_neighbours(expected))


@every_drift
@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_every_class_and_problem_has_its_own(cloud, kind, how, backend):
    x, y = cloud(0, 14, 2), cloud(1, 15, 2)
    labels = torch.tensor([0, 1] * 7), torch.tensor([0, 1, 1] * 5)
    for z, own in zip((x, y), labels, strict=True):
        z[own == 1] *= 10
    drift = kind(0.1, relative=True, backend=backend, **how)
    found = drift(x, y, x_labels=labels[0], y_labels=labels[1])
    for k in (0, 1):
        parts = [z[own == k] for z, own in zip((x, y), labels, strict=True)]
        torch.testing.assert_close(found[labels[0] == k], drift(*parts), atol=1e-6, rtol=1e-7)
    batch = drift(torch.stack([x, 3 * x]), torch.stack([y, 3 * y]))
    torch.testing.assert_close(batch[1], 3 * batch[0], atol=1e-6, rtol=1e-7)


def test_points_without_weight_do_not_count(cloud):
    x, y, far = cloud(0, 9, 2), cloud(1, 12, 2), 1e3 + cloud(2, 3, 2)
    drift = kd.SinkhornDrift(0.1, relative=True, tol=1e-9)
    weights = torch.cat([torch.ones(12), torch.zeros(3)])
    found = drift(x, torch.cat([y, far]), y_weights=weights)
    torch.testing.assert_close(found, drift(x, y), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("points", [2048, 5])
def test_expected_cost_is_the_weighted_mean(cloud, points):
    x, y, a, b = cloud(0, 3, 9, 2), cloud(1, 3, 12, 2), cloud(2, 3, 9).exp(), cloud(3, 3, 12).exp()
    found = expected_cost(x, a, y, b, as_cost("euclidean"), points)
    if points < 9:
        x, a, y, b = x[:, ::2], a[:, ::2], y[:, ::3], b[:, ::3]
    mass = a[..., None] * b[..., None, :]
    expected = (mass * ref.pairs(x, y, "euclidean")).sum((-1, -2)) / mass.sum((-1, -2))
    torch.testing.assert_close(found, expected)


def test_clouds_at_one_point_have_no_unit_and_no_drift():
    x = torch.ones(4, 2)
    assert torch.equal(kd.SinkhornDrift(0.1, relative=True)(x, x), torch.zeros(4, 2))


def test_relative_is_a_truth_value():
    with pytest.raises(OptionError, match="relative"):
        kd.OneSidedDrift(0.1, relative="yes")


@every_drift
def test_a_small_class_has_its_own_scale_beside_a_very_large_one(cloud, kind, how):
    """Its points are not thinned as those of the class to whose width it is padded."""
    sizes = (5000, 90)
    x, y = cloud(0, 40, 2), cloud(1, sum(sizes), 2) + 1
    x_labels = torch.arange(2).repeat_interleave(20)
    y_labels = torch.arange(2).repeat_interleave(torch.tensor(sizes))
    drift = kind(0.1, relative=True, **how)
    v = drift(x, y, x_labels=x_labels, y_labels=y_labels)
    alone = drift(x[20:], y[5000:])
    torch.testing.assert_close(v[20:], alone, rtol=1e-6, atol=1e-7)
    a, b = torch.ones(1, 20, dtype=F64), torch.ones(1, 90, dtype=F64)
    padded = torch.cat([y[5000:], y[:4910]])[None], torch.nn.functional.pad(b, (0, 4910))
    wide = expected_cost(x[None, 20:], a, *padded, as_cost("squared"))
    exact = expected_cost(x[None, 20:], a, y[None, 5000:], b, as_cost("squared"))
    torch.testing.assert_close(wide, exact, rtol=1e-12, atol=0)
