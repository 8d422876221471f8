"""The drift is what GeomLoss differentiates: V_i = −∇_{x_i} S_τ / a_i, within 1e-4."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch

import keodrift as kd
from keodrift.errors import MissingDependencyError, OptionError, ShapeError

geomloss = pytest.importorskip("geomloss", reason="the cross-check needs the package geomloss")

# Name: clouds (N ≠ M), τ; C = ½‖x−y‖².
PROBLEMS = {
    "blobs in the plane": (lambda c: (c(0, 40, 2), 0.6 * c(1, 55, 2) + 1), 0.3),
    "overlapping in space": (lambda c: (c(0, 60, 3), c(1, 35, 3)), 0.5),
    "a line, sharp": (lambda c: (c(0, 30, 1), 0.5 * c(1, 45, 1) - 0.5), 0.05),
    "features": (lambda c: (c(0, 25, 16), 0.8 * c(1, 33, 16)), 4.0),
}


def reference_gradient(x, y, a, b, tau):
    """From GeomLoss, annealed slowly: its default scaling of 0.5 is far from converged.

    Its potentials lag behind the temperature by a step of the annealing, so the steps are tiny;
    a start 2 % above the target then leaves a thousand of them, which these problems need to
    converge and which no longer carry a lag that 1e-4 would see.
    """
    blur = math.sqrt(tau)
    enabled = torch.is_grad_enabled()
    try:
        with torch.enable_grad():
            free = x.clone().requires_grad_()
            loss = geomloss.SamplesLoss(
                "sinkhorn",
                p=2,
                blur=blur,
                diameter=1.02 * blur,
                scaling=0.99998,
                backend="tensorized",
            )
            value = loss(a, free, b, y)
            (gradient,) = torch.autograd.grad(value, free)
    finally:
        torch.set_grad_enabled(enabled)
    return value.item(), gradient


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_drift_and_divergence_agree_with_geomloss(cloud, name, weighted):
    clouds, tau = PROBLEMS[name]
    x, y = clouds(cloud)
    a = cloud(2, len(x)).exp() if weighted else torch.ones(len(x), dtype=torch.float64)
    b = cloud(3, len(y)).exp() if weighted else torch.ones(len(y), dtype=torch.float64)
    a, b = a / a.sum(), b / b.sum()
    value, gradient = reference_gradient(x, y, a, b, tau)
    v = kd.SinkhornDrift(tau, tol=1e-9)(x, y, x_weights=a, y_weights=b)
    expected = -gradient / a[:, None]
    assert float((v - expected).norm() / expected.norm()) <= 1e-4
    ours = kd.sinkhorn_divergence(x, y, tau, x_weights=a, y_weights=b, tol=1e-9)
    assert float(ours) == pytest.approx(value, rel=1e-4)


# The cross-check that users have. GeomLoss is annealed for it in a few hundred steps and has about
# as far to go to its own limit as `drift_left` says.

SLOPES = {"velocity": "gradient", "tol": 1e-6}


def blobs(cloud, n, m, dtype=torch.float64, d=2):
    return cloud(0, n, d).to(dtype), (0.6 * cloud(1, m, d) + 1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("backend", "cost"),
    [
        *((name, cost) for name in ("keops", "tiled") for cost in ("half_squared", "euclidean")),
        ("cells", "squared"),
    ],
)
def test_engines_agree_with_geomloss(cloud, keops, backend, cost, dtype):
    x, y = blobs(cloud, 150, 200, dtype)
    a, b = cloud(2, 150).exp(), cloud(3, 200).exp()
    drift = kd.SinkhornDrift(0.5, cost=cost, backend=backend, velocity="gradient", tol=1e-4)
    check = kd.crosscheck(drift, x, y, x_weights=a, y_weights=b, scaling=0.98)
    assert check.drift <= 2 * check.drift_left <= 0.01
    assert check.value <= 1e-4
    assert (check.engines, check.points) == ((backend, backend), (150, 200))


@pytest.mark.parametrize(
    "drift",
    [
        kd.SinkhornDrift(0.5, cost="squared", tol=1e-6),
        kd.SinkhornDrift(1.0, cost="squared", reach=2.0, masses="gradient", **SLOPES),
        kd.SinkhornDrift(0.5, cost="euclidean", reach=2.0, masses="gradient", **SLOPES),
        kd.SinkhornDrift(0.1, relative=True, reach=2.0, masses="gradient", **SLOPES),
        kd.SinkhornDrift(0.1, cost="cosine", **SLOPES),
        kd.SinkhornDrift(2.0, cost=lambda x, y: 3 * ((x - y) ** 2).sum(-1).sqrt(), **SLOPES),
        kd.SinkhornDrift(1e4, tol=1e-10),
    ],
    ids=["squared", "reach", "reach, distances", "relative", "on the sphere", "mine", "hot"],
)
def test_costs_and_relaxed_marginals_agree_with_geomloss(cloud, drift):
    check = kd.crosscheck(drift, *blobs(cloud, 150, 200), scaling=0.98)
    assert check.drift <= 3 * check.drift_left <= 0.03
    assert check.value <= 1e-3


def test_a_field_too_large_by_a_hundredth_is_told_apart(cloud):
    class Larger(kd.SinkhornDrift):
        def _of(self, clouds, couplings):
            mass = torch.full((150,), 1.01, dtype=torch.float64)
            return replace(super()._of(clouds, couplings), masses=lambda *_: (mass, mass))

    check = kd.crosscheck(Larger(0.5, tol=1e-6), *blobs(cloud, 150, 200), scaling=0.98)
    assert check.drift > 5 * check.drift_left


def test_a_hundred_thousand_points_agree_with_geomloss(cloud, keops):
    x, y = blobs(cloud, 100_000, 30_000, torch.float32)
    drift = kd.SinkhornDrift(0.5, backend="cells", tol=1e-4)
    check = kd.crosscheck(drift, x, y, points=None, scaling=0.8)
    assert check.points == (100_000, 30_000)
    assert check.drift <= 2 * check.drift_left <= 0.01
    assert check.value <= 1e-3


def test_clouds_are_compared_at_even_steps(cloud):
    x, y = blobs(cloud, 150, 40)
    some = kd.crosscheck(kd.SinkhornDrift(1.0), x, y, points=50, scaling=0.9)
    assert some.points == (50, 40)
    assert some == kd.crosscheck(kd.SinkhornDrift(1.0), x[::3], y, scaling=0.9)


@pytest.mark.parametrize(
    ("drift", "options", "words"),
    [
        (kd.OneSidedDrift(0.5), {}, "a SinkhornDrift"),
        (kd.SinkhornDrift(0.5, half_steps=41), {}, "half_steps=None"),
        (kd.SinkhornDrift(0.5, mask_self=True), {}, "mask_self=False"),
        (kd.SinkhornDrift(0.5, reach=1.0), {}, "masses='gradient'"),
        (kd.SinkhornDrift(0.5, cost="euclidean"), {}, "velocity='gradient'"),
        (kd.SinkhornDrift(0.5, cost="cosine"), {}, "velocity='gradient'"),
        (kd.SinkhornDrift(0.5, cost="pseudo_huber"), {}, "one that GeomLoss has"),
        (kd.SinkhornDrift(0.5), {"scaling": 1.0}, "between 0 and 1"),
        (kd.SinkhornDrift(0.5), {"points": 0}, "a positive integer"),
    ],
)
def test_what_geomloss_cannot_check_is_refused(cloud, drift, options, words):
    with pytest.raises(OptionError, match=words):
        kd.crosscheck(drift, *blobs(cloud, 5, 6), **options)


def test_one_problem_is_compared(cloud):
    with pytest.raises(ShapeError, match="one problem"):
        kd.crosscheck(kd.SinkhornDrift(0.5), cloud(0, 2, 5, 2), cloud(1, 2, 6, 2))


def test_without_geomloss_it_says_so(cloud, monkeypatch):
    monkeypatch.setitem(sys.modules, "geomloss", None)
    with pytest.raises(MissingDependencyError, match="geomloss"):
        kd.crosscheck(kd.SinkhornDrift(0.5), *blobs(cloud, 5, 6))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_modes_stay_as_they_were(cloud, mode):
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        random = torch.random.get_rng_state()
        kd.crosscheck(kd.SinkhornDrift(0.5), *blobs(cloud, 5, 6), scaling=0.9)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert torch.equal(torch.random.get_rng_state(), random)
