"""Relaxed marginals: damped half-steps, their limits, values and gradients, and a reach from data.

The references iterate plain damped half-steps, dense and in float64, until nothing moves; r = ρ/τ.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from decimal import Decimal, localcontext
from itertools import pairwise

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.costs import as_cost, half_squared, squared
from keodrift.errors import ArgumentError, ConvergenceWarning, OptionError, ShapeError
from keodrift.reductions import Cells, Tiled
from keodrift.transport import EntropicProblem, Sinkhorn, coarse, cooled, zero
from keodrift.transport.marginals import Relaxed
from keodrift.transport.newton import newton

F64 = torch.float64
CELLS = Cells(otherwise=Tiled())


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def uniform(points):
    return torch.full(points.shape[:-1], 1 / points.shape[-2], dtype=F64)


def damped(logits, a, b, r, sweeps=20_000):
    """f and g after so many sweeps of damped half-steps from g = 0, or when nothing moves."""
    f, g, rate = torch.zeros_like(a), torch.zeros_like(b), r / (r + 1)
    for _ in range(sweeps):
        before, f = f, -rate * torch.logsumexp(logits + (b.log() + g)[..., None, :], -1)
        f = torch.where(torch.isinf(f), 0.0, f)
        g = -rate * torch.logsumexp(logits + (a.log() + f)[..., None], -2)
        g = torch.where(torch.isinf(g), 0.0, g)
        if float((f - before).abs().max()) < 1e-14:
            break
    return f, g


def coupling(logits, a, b, f, g):
    return (logits + (a.log() + f)[..., None] + (b.log() + g)[..., None, :]).exp()


def kl(p, q):
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q) - p + q).sum()


def primal(costs, tau, rho, a, b, plan):
    """What OT_{τ,ρ} minimises over plans of any mass."""
    product = a[:, None] * b
    return (costs * plan).sum() + (
        tau * kl(plan, product) + rho * kl(plan.sum(1), a) + rho * kl(plan.sum(0), b)
    )


def transport(x, y, a, b, cost, tau, rho):
    logits = ref.log_kernel(x, y, cost, tau)
    plan = coupling(logits, a, b, *damped(logits, a, b, rho / tau))
    return primal(-tau * logits, tau, rho, a, b, plan)


def relaxed(p, rho, masses="unit", velocity="barycentric", q=None, t=None):
    """The reference field at the particles, or at q."""
    z, pulls = p.x if q is None else q, []
    for points, weights, mask in ((p.y, p.b, False), (p.z, p.c, p.mask)):
        logits = ref.log_kernel(p.x, points, p.cost, p.tau, mask)
        sweeps = {} if t is None else {"sweeps": (t - 1) // 2}
        _, g = damped(logits, p.a, weights, rho / p.tau, **sweeps)
        rows = ref.log_kernel(z, points, p.cost, p.tau, mask and q is None)
        rows = rows + (weights.log() + g)[..., None, :]
        pull = ref.Field(p, g, g, velocity)._pull(z, points, ref.softmax(rows))
        mass = torch.logsumexp(rows, -1) * p.tau / (rho + p.tau)  # −f/ρ
        pulls.append(pull * mass.exp()[..., None] if masses == "gradient" else pull)
    return pulls[0] - pulls[1]


@pytest.fixture
def clouds():
    """Two clouds of unequal size, with weights of which some are 0."""
    a, b = normal(2, 9).exp(), normal(3, 12).exp()
    a[1], b[::5] = 0, 0
    return normal(0, 9, 2), 0.6 * normal(1, 12, 2) + 0.7, a, b


def test_damping_is_one_number_a_problem():
    x, a = normal(0, 2, 5, 2), torch.full((2, 5), 0.2, dtype=F64)
    problem = EntropicProblem(x, x, a, a, half_squared, torch.tensor([0.5, 1.0], dtype=F64))
    assert problem.damping == 1.0
    relaxed = replace(problem, reach=torch.tensor([0.5, 3.0], dtype=F64))
    torch.testing.assert_close(relaxed.damping, torch.tensor([0.5, 0.75], dtype=F64))
    g = normal(1, 2, 5)
    for i, (tau, rho) in enumerate(((0.5, 0.5), (1.0, 3.0))):
        logits = ref.log_kernel(x[i], x[i], "half_squared", tau)
        f = -rho / (rho + tau) * torch.logsumexp(logits + math.log(0.2) + g[i], -1)
        torch.testing.assert_close(relaxed.row_step(g)[i], f, rtol=0, atol=1e-13)
    assert EntropicProblem(x[0], x[0], a[0], a[0], half_squared, 0.5, reach=0.5).damping == 0.5


@pytest.mark.parametrize("start", [zero, cooled, coarse])
@pytest.mark.parametrize("cost", ["half_squared", "euclidean", "lopsided"])
@pytest.mark.parametrize("r", [0.01, 1.0, 30.0])
def test_potentials_are_those_of_damped_half_steps(clouds, r, cost, start):
    x, y, a, b = clouds
    a, b, own = a / a.sum(), b / b.sum(), as_cost(ref.OWN.get(cost, cost))
    tau = 0.2 * ref.mean_cost(x, y, cost)
    logits = ref.log_kernel(x, y, cost, tau)
    f, g = damped(logits, a, b, r)
    found = Sinkhorn(tol=1e-11).solve(EntropicProblem(x, y, a, b, own, tau, reach=r * tau), start)
    assert bool(found.converged)
    # A marginal error is an error of a constant amplified by 2r + 1 at most.
    torch.testing.assert_close(found.g, g, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.problem.row_step(found.g), f, rtol=0, atol=1e-9)
    plan = coupling(logits, a, b, f, g)
    torch.testing.assert_close(plan.sum(1), a * (-f / r).exp(), rtol=0, atol=1e-12)
    kept, shares = found.kept
    torch.testing.assert_close(kept, (-f / r).exp(), rtol=0, atol=1e-8)
    torch.testing.assert_close(shares, (-g / r).exp(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("cost", ["half_squared", "euclidean", "lopsided"])
@pytest.mark.parametrize("r", [0.01, 1.0, 30.0])
def test_value_is_the_least_cost_with_prices(clouds, r, cost):
    x, y, a, b = clouds
    tau = 0.2 * ref.mean_cost(x, y, cost)
    a, b = a / a.sum(), b / b.sum()
    rho, own = r * tau, as_cost(ref.OWN.get(cost, cost))
    found = Sinkhorn(tol=1e-8).solve(EntropicProblem(x, y, a, b, own, tau, reach=rho), coarse)
    expected = transport(x, y, a, b, cost, tau, rho)
    assert float(found.value) == pytest.approx(float(expected), rel=1e-11)
    # It is the least: any other plan costs more.
    plan = coupling(ref.log_kernel(x, y, cost, tau), a, b, *(z / tau for z in (found.f, found.g)))
    assert float(primal(ref.pairs(x, y, cost), tau, rho, a, b, plan)) > float(expected)


@pytest.mark.parametrize("r", [0.05, 1.0, 20.0])
def test_the_dual_never_falls(clouds, r):
    """Under plain half-steps and under the best constant; nor does what the solver guards."""
    x, y, a, b = clouds
    a, b = a / a.sum(), b / b.sum()
    problem = EntropicProblem(x, y, a, b, half_squared, 0.05, reach=0.05 * r)

    def dual(f, g):
        rows, columns = torch.expm1(-f / r), torch.expm1(-g / r)
        return float(-(r + 1) * (a * rows).sum() - r * (b * columns).sum())

    g, values, guarded = normal(5, 12), [], []
    for _ in range(30):
        f = problem.row_step(g)
        values.append(dual(f, g))
        guarded.append(float(problem.dual(f, g)))
        _, f, g = problem.centred(f, g)
        values.append(dual(f, g))
        assert float(problem.value(f, g)) == pytest.approx(0.05 * values[-1], rel=1e-12)
        torch.testing.assert_close(problem.row_step(g), f, rtol=0, atol=1e-12)
        assert float((a * (-f / r).exp()).sum() / (b * (-g / r).exp()).sum()) == pytest.approx(1)
        g = problem.column_step(f)
    for series in (values, guarded):
        assert all(later >= now - 1e-12 * abs(now) for now, later in pairwise(series))
        assert series[-1] > series[0] + 1e-3


def test_the_error_is_relative_to_the_mass_that_is_moved(clouds):
    x, y, a, b = clouds
    a, b, tau, r = a / a.sum(), b / b.sum(), 0.3, 2.0
    problem = EntropicProblem(x, y + 2, a, b, half_squared, tau, reach=r * tau)
    logits = ref.log_kernel(x, y + 2, "half_squared", tau)
    for sweeps in (0, 1, 4):
        field = kd.SinkhornDrift(tau, reach=r * tau, half_steps=2 * sweeps + 1).fit(
            x, y + 2, x_weights=a, y_weights=b
        )
        _, g = damped(logits, a, b, r, sweeps=sweeps)
        torch.testing.assert_close(field.couplings[0].g, g, rtol=0, atol=1e-12)
        f = problem.row_step(g)
        aim = b * (-g / r).exp()
        expected = (coupling(logits, a, b, f, g).sum(0) - aim).abs().sum() / aim.sum()
        reported = float(field.couplings[0].marginal_error)
        assert reported == pytest.approx(float(expected), rel=1e-10, abs=1e-12)


def test_roundings_are_those_of_the_coupling_that_is_held(clouds):
    """A relaxed coupling is, up to its mass, the exact one between its own marginals."""
    x, y, a, b = clouds
    x[0] = 9.0  # next to nothing of it is moved
    a, b, r = a / a.sum(), b / b.sum(), 1.5
    relaxed = EntropicProblem(x, y, a, b, half_squared, 0.1, reach=0.1 * r)
    f, g = damped(ref.log_kernel(x, y, "half_squared", 0.1), a, b, r)
    rows, columns = a * (-f / r).exp(), b * (-g / r).exp()
    mass = rows.sum()
    exact = EntropicProblem(x, y, rows / mass, columns / mass, half_squared, 0.1)
    h, k = f + f / r, g + g / r + mass.log()
    assert float(exact.marginal_error(k, exact.column_step(exact.row_step(k)))) < 1e-10
    got, expected = float(relaxed.rounding(f, g)), float(exact.rounding(h, k))
    assert got == pytest.approx(expected, rel=1e-9)
    assert got < 0.8 * float(relaxed.kernel.rounding(a, b, f, g))  # were all mass moved
    found = Sinkhorn(tol=1e-10).solve(relaxed, zero)
    torch.testing.assert_close(
        found.log_mass, relaxed.kernel.log_mass(found.bias), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("masses", ["unit", "gradient"])
@pytest.mark.parametrize("velocity", ["barycentric", "gradient"])
@pytest.mark.parametrize("cost", ["half_squared", "euclidean", "lopsided"])
@pytest.mark.parametrize("r", [0.1, 1.0, 10.0])
def test_field_is_that_of_the_reference(clouds, r, cost, velocity, masses):
    x, y, a, b = clouds
    u, w = normal(7, 5, 2) - 1, normal(8, 5).exp()
    tau, own = 0.3 * ref.mean_cost(x, y, cost), ref.OWN.get(cost, cost)
    drift = kd.SinkhornDrift(
        tau, reach=r * tau, cost=own, masses=masses, velocity=velocity, tol=1e-11
    )
    z = 1.5 * normal(6, 7, 2)
    for long, short in (
        ({}, {}),
        ({"x_weights": a, "y_weights": b}, {"a": a, "b": b}),
        ({"negatives": u, "negative_weights": w}, {"u": u, "w": w}),
    ):
        p = ref.problem(x, y, tau, cost=cost, **short)
        field = drift.fit(x, y, **long)
        torch.testing.assert_close(
            field(), relaxed(p, r * tau, masses, velocity), rtol=0, atol=1e-8
        )
        torch.testing.assert_close(
            field(z), relaxed(p, r * tau, masses, velocity, z), rtol=0, atol=1e-8
        )
        budget = replace(drift, half_steps=7).fit(x, y, **long)
        expected = relaxed(p, r * tau, masses, velocity, t=7)
        torch.testing.assert_close(budget(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("masses", ["unit", "gradient"])
def test_masked_fields_are_those_of_the_reference(clouds, masses):
    x, y, *_ = clouds
    p = ref.problem(x, y, 0.4, mask=True)
    drift = kd.SinkhornDrift(0.4, reach=1.0, masses=masses, mask_self=True, tol=1e-11)
    field = drift.fit(x, y)
    assert bool(field.converged)
    torch.testing.assert_close(field(), relaxed(p, 1.0, masses), rtol=0, atol=1e-8)


def test_relaxed_problems_are_always_feasible(clouds):
    """Where balanced ones are not: a heavy particle without its pair keeps its mass to itself."""
    x, y, *_ = clouds
    heavy = torch.ones(9, dtype=F64)
    heavy[0] = 20
    drift = kd.SinkhornDrift(0.4, reach=1.0, mask_self=True, tol=1e-10, masses="gradient")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        field = drift.fit(x, y, x_weights=heavy)
        p = ref.problem(x, y, 0.4, mask=True, a=heavy)
        torch.testing.assert_close(field(), relaxed(p, 1.0, "gradient"), rtol=0, atol=1e-8)
        # Alone, masked: nothing to be repelled by, and no mass to be held.
        for others in ({}, {"negatives": y[:1]}, {"negatives": y[:4]}):
            field = drift.fit(x[:1], y, **others)
            p = ref.problem(x[:1], y, 0.4, mask=True, u=others.get("negatives"))
            torch.testing.assert_close(field(), relaxed(p, 1.0, "gradient"), rtol=0, atol=1e-8)


@pytest.mark.parametrize("backend", ["tiled", CELLS], ids=["tiled", "cells"])
@pytest.mark.parametrize("masses", ["unit", "gradient"])
def test_engines_agree(backend, masses):
    x, y, z = normal(0, 300, 2), 0.5 * normal(1, 250, 2) + 2, 2 * normal(2, 40, 2)
    b = normal(3, 250).exp()
    for rho in (0.02, 1.0, 50.0):
        drift = kd.SinkhornDrift(0.1, reach=rho, masses=masses, tol=1e-7)
        dense = replace(drift, backend="dense").fit(x, y, y_weights=b)
        other = replace(drift, backend=backend).fit(x, y, y_weights=b)
        assert bool(other.converged)
        scale = float(dense().norm())
        assert float((other() - dense()).norm()) <= 1e-4 * scale
        assert float((other(z) - dense(z)).norm()) <= 1e-4 * float(dense(z).norm())


@pytest.mark.usefixtures("keops")
def test_keops_agrees():
    x, y = normal(0, 60, 2).float(), 0.5 * normal(1, 50, 2).float() + 1
    drift = kd.SinkhornDrift(0.3, reach=1.0, masses="gradient", tol=1e-4)
    dense, other = (replace(drift, backend=name)(x, y) for name in ("dense", "keops"))
    torch.testing.assert_close(dense, other, rtol=0, atol=1e-3)


# The family and its limits.


def test_without_reach_the_one_sided_field_is_left(clouds):
    x, y, a, b = clouds
    weights = {"x_weights": a, "y_weights": b}
    one_sided = kd.OneSidedDrift(0.3, mask_self=False)(x, y, **weights)
    for options in ({}, {"half_steps": 9}):
        got = kd.SinkhornDrift(0.3, reach=1e-10, **options)(x, y, **weights)
        torch.testing.assert_close(got, one_sided, rtol=0, atol=1e-8)


def test_half_a_column_half_step_is_the_two_sided_field(clouds):
    x, y, a, b = clouds
    a, b = a / a.sum(), b / b.sum()
    tau = 0.3
    split = kd.TwoSidedDrift(tau, form="split", mask_self=False)(x, y, x_weights=a, y_weights=b)
    pulls = []
    for points, weights in ((y, b), (x, a)):
        problem = EntropicProblem(x, points, a, weights, half_squared, tau, reach=tau)
        g = problem.column_step(torch.zeros_like(a))
        pulls.append(problem.kernel.barycentre(weights.log() + g))
    torch.testing.assert_close(pulls[0] - pulls[1], split, rtol=0, atol=1e-13)


@pytest.mark.parametrize("masses", ["unit", "gradient"])
@pytest.mark.parametrize("rho", [1e8, 1e30])
def test_beyond_all_costs_it_is_balanced(clouds, rho, masses):
    x, y, a, b = clouds
    weights = {"x_weights": a, "y_weights": b}
    for options in ({"tol": 1e-10}, {"half_steps": 9}):
        balanced = kd.SinkhornDrift(0.1, **options)(x, y, **weights)
        got = kd.SinkhornDrift(0.1, reach=rho, masses=masses, **options)(x, y, **weights)
        torch.testing.assert_close(got, balanced, rtol=0, atol=1e-7)
    tight = {**weights, "tol": 1e-10}
    value = kd.sinkhorn_divergence(x, y, 0.1, reach=rho, **tight)
    assert float(value) == pytest.approx(float(kd.sinkhorn_divergence(x, y, 0.1, **tight)), 1e-6)


def test_equal_clouds_do_not_move(clouds):
    x, _, a, _ = clouds
    other = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    for options in ({"tol": 1e-12}, {"half_steps": 5}):
        drift = kd.SinkhornDrift(0.2, reach=0.7, masses="gradient", **options)
        v = drift(x, x[other], x_weights=a, y_weights=a[other])
        assert float(v.abs().max()) < 1e-9


def test_reach_decides_whether_mass_crosses_a_gap():
    """Two modes at ±2, 90 % of the particles left and half of the data: the gap costs 8."""
    x, y = 0.1 * normal(0, 100, 1), 0.1 * normal(1, 100, 1)
    x += torch.where(torch.arange(100) < 90, -2.0, 2.0)[:, None]
    y += torch.where(torch.arange(100) < 50, -2.0, 2.0)[:, None]
    moved = {
        rho: float(kd.SinkhornDrift(0.05, reach=rho)(x, y).mean()) for rho in (1.0, 50.0, None)
    }
    assert moved[None] == pytest.approx(1.6, abs=0.1)
    assert abs(moved[1.0]) < 0.05 and moved[50.0] > 0.8 * moved[None]


def test_a_stray_particle_counts_by_the_mass_it_keeps():
    x, y = normal(0, 20, 2), normal(1, 30, 2)
    x[0] = 30.0
    how = {"tau": 0.2, "reach": 2.0}
    unit, gradient = (kd.SinkhornDrift(**how, masses=m)(x, y) for m in ("unit", "gradient"))
    assert float(unit[0].norm()) > 20 and float(gradient[0].norm()) < 1e-6


# Value and gradient.


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("cost", ["half_squared", "euclidean", "lopsided"])
def test_divergence_is_the_debiased_cost(clouds, cost, weighted):
    x, y, a, b = clouds
    tau = 0.3 * ref.mean_cost(x, y, cost)
    given = {"x_weights": a, "y_weights": b} if weighted else {}
    a, b = (ref.normalised(w if weighted else None, z) for w, z in ((a, x), (b, y)))
    for r in (0.1, 3.0):
        parts = ((x, y, a, b, 1.0), (x, x, a, a, -0.5), (y, y, b, b, -0.5))
        expected = sum(k * transport(p, q, v, w, cost, tau, r * tau) for p, q, v, w, k in parts)
        own = ref.OWN.get(cost, cost)
        got = kd.sinkhorn_divergence(x, y, tau, cost=own, reach=r * tau, tol=1e-9, **given)
        assert float(got) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("rho", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("cost", ["half_squared", "euclidean", "lopsided"])
def test_gradients_are_finite_differences(clouds, cost, rho):
    x, y, a, b = clouds
    x, y, a, b = x[2:5].requires_grad_(), y[1:5].requires_grad_(), a[2:5], b[1:5]
    own = ref.OWN.get(cost, cost)

    def value(x, y):
        return kd.sinkhorn_divergence(
            x, y, 0.5, cost=own, reach=rho, tol=1e-12, x_weights=a, y_weights=b
        )

    assert torch.autograd.gradcheck(value, (x, y), eps=1e-5, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("rho", [0.1, 1.0, 30.0])
def test_gradient_is_minus_the_drift_of_row_masses(clouds, rho):
    x, y, a, b = clouds
    free = x.clone().requires_grad_()
    given = {"x_weights": a, "y_weights": b, "tol": 1e-10}
    kd.sinkhorn_divergence(free, y, 0.3, reach=rho, **given).backward()
    drift = kd.SinkhornDrift(0.3, reach=rho, masses="gradient", tol=given.pop("tol"))
    expected = -(a / a.sum())[:, None] * drift(x, y, **given)
    torch.testing.assert_close(free.grad, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rho", [0.2, 2.0, 20.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
def test_value_and_gradient_agree_with_geomloss(weighted, rho):
    geomloss = pytest.importorskip("geomloss", reason="the cross-check needs the package geomloss")
    x, y, tau = normal(0, 40, 2), 0.6 * normal(1, 55, 2) + 1, 0.3
    a, b = ((normal(k, len(z)) if weighted else 0 * z[:, 0]).exp() for k, z in ((2, x), (3, y)))
    a, b = a / a.sum(), b / b.sum()
    free, blur = x.clone().requires_grad_(), math.sqrt(tau)
    # Its ρ is reach^p in the unit of ½‖x−y‖². Annealed slowly, as in test_geomloss.
    loss = geomloss.SamplesLoss(
        "sinkhorn",
        p=2,
        blur=blur,
        reach=math.sqrt(rho),
        diameter=1.02 * blur,
        scaling=0.99998,
        backend="tensorized",
    )
    value = loss(a, free, b, y)
    (gradient,) = torch.autograd.grad(value, free)
    # Its values are scaled by ρ + τ/2, their derivatives should be by ρ + τ; the module that is
    # to see to that (UnbalancedWeight) has a `backward` that autograd does not call.
    gradient = gradient * (rho + tau) / (rho + tau / 2)
    given = {"x_weights": a, "y_weights": b}
    ours = kd.sinkhorn_divergence(x, y, tau, reach=rho, tol=1e-9, **given)
    assert float(ours) == pytest.approx(value.item(), rel=1e-4)
    v = kd.SinkhornDrift(tau, reach=rho, masses="gradient", tol=1e-9)(x, y, **given)
    expected = -gradient / a[:, None]
    assert float((v - expected).norm() / expected.norm()) <= 2e-4


# Batches, classes, starts, dtypes, extremes.


@pytest.mark.parametrize("masses", ["unit", "gradient"])
def test_batches_and_classes_are_problems_of_their_own(masses):
    x, y = normal(0, 2, 3, 9, 2), normal(1, 2, 3, 12, 2)
    x[0] *= 0.1
    drift = kd.SinkhornDrift(0.1, reach=0.5, masses=masses, tol=1e-9)
    field = drift.fit(x, y)
    assert field.converged.shape == (2, 3) and bool(field.converged.all())
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(field()[i, j], drift(x[i, j], y[i, j]), rtol=0, atol=1e-6)
    labels = torch.tensor([0] * 5 + [1] * 4), torch.tensor([1] * 7 + [0] * 5)
    x, y, z = x[1, 0], y[1, 0], normal(2, 6, 2)
    field = drift.fit(x, y, x_labels=labels[0], y_labels=labels[1])
    of_z = torch.arange(6) % 2
    for k in (0, 1):
        own = drift.fit(x[labels[0] == k], y[labels[1] == k])
        torch.testing.assert_close(field()[labels[0] == k], own(), rtol=0, atol=1e-6)
        got = field(z, of_z)[of_z == k]
        torch.testing.assert_close(got, own(z[of_z == k]), rtol=0, atol=1e-6)


def test_points_of_weight_zero_are_not_there(clouds):
    x, y, a, b = clouds
    drift = kd.SinkhornDrift(0.4, reach=0.8, masses="gradient", tol=1e-11)
    got = drift(x, y, x_weights=a, y_weights=b)[a > 0]
    i, j = a > 0, b > 0
    kept = drift(x[i], y[j], x_weights=a[i], y_weights=b[j])
    torch.testing.assert_close(got, kept, rtol=0, atol=1e-9)


def test_a_start_is_cheaper_and_the_same():
    x, y = ring(240, 2, 0.3), ring(200, 3, 0.08)
    drift = kd.SinkhornDrift(0.05, cost="squared", reach=20.0, tol=1e-9)
    first = drift.fit(x, y)
    moved = x + 0.01 * first()
    cold, warm = drift.fit(moved, y), drift.fit(moved, y, start=first)
    assert bool(warm.converged)
    assert float((warm() - cold()).norm() / cold().norm()) < 1e-6
    assert drift.fit(x, y, start=first).half_steps <= 3
    # From another reach, or none, it is a start like any other.
    for other in (None, 0.5):
        again = replace(drift, reach=other).fit(x, y, start=first)
        expected = replace(drift, reach=other)(x, y)
        assert float((again() - expected).norm() / expected.norm()) < 1e-6


def test_a_relaxed_drift_is_solved_until_it_stands_still():
    x, y = ring(400, 2, 0.08), ring(400, 3, 0.08)
    drift = kd.SinkhornDrift(0.02, cost="squared", reach=5.0)
    exact = replace(drift, tol=1e-10)(x, y)
    field = replace(drift, drift_tol=0.01).fit(x, y)
    assert bool(field.converged) and float((field() - exact).norm() / exact.norm()) <= 0.01


@pytest.mark.parametrize("masses", ["unit", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_far_clouds_are_finite_and_converged(masses, dtype):
    """C ≫ ρ: hardly any mass is moved, and its barycentres are right all the same."""
    x, y = normal(0, 60, 2), normal(1, 50, 2) + 40
    rho = 5.0  # the clouds are 1600 apart: in units of ρ + τ more than e can be raised to
    p = ref.problem(x, y, 0.5)
    drift = kd.SinkhornDrift(0.5, reach=rho, masses=masses, tol=1e-3)
    field = drift.fit(x.to(dtype), y.to(dtype))
    assert bool(field.converged) and bool(torch.isfinite(field()).all())
    expected = relaxed(p, rho, masses)
    assert float((field() - expected).norm() / expected.norm()) < 1e-2
    v = field(y.to(dtype))  # beside data that is far from all particles
    assert bool(torch.isfinite(v).all()) and float(v.abs().max()) <= 60 * 50 * 80


def test_single_precision_keeps_the_tolerance():
    x, y = ring(240, 2, 0.3), ring(200, 3, 0.08)
    for rho in (0.5, 20.0):
        drift = kd.SinkhornDrift(0.05, cost="squared", reach=rho, tol=1e-3, masses="gradient")
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            got = drift(x.float(), y.float())
        expected = replace(drift, tol=1e-9)(x, y)
        assert got.dtype == torch.float32
        assert float((got - expected).norm() / expected.norm()) < 2e-2


def test_a_fields_masses_have_slopes(clouds):
    x, y, *_ = clouds
    field = kd.SinkhornDrift(0.5, reach=1.0, masses="gradient", tol=1e-10).fit(x, y)
    z = normal(5, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(field, (z,), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("r", "steps"), [(0.1, 5), (1.0, 5), (10.0, 5), (1000.0, 60)])
@pytest.mark.parametrize("tau", [0.5, 0.05])
def test_newton_solves_small_problems(monkeypatch, tau, r, steps):
    """Separated modes with unequal masses; in few steps, so the curvature is the right one."""
    monkeypatch.setattr("keodrift.transport.newton.TRIALS", steps)
    x, y = ring(50, 2, 0.3), ring(40, 3, 0.08)
    a, b = normal(0, 50).exp(), normal(1, 40).exp()
    b[::7] = 0
    a, b = a / a.sum(), b / b.sum()
    problem = EntropicProblem(x, y, a, b, squared, tau, reach=r * tau)
    g, f = newton(problem, torch.zeros(40, dtype=F64), tol=1e-10)
    logits = ref.log_kernel(x, y, "squared", tau)
    plan = coupling(logits, a, b, f, g)
    for got, aim in ((plan.sum(1), a * (-f / r).exp()), (plan.sum(0), b * (-g / r).exp())):
        assert float((got - aim).abs().sum()) <= 1e-8 * float(aim.sum())


def ring(n, seed, std):
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=generator).double() * (math.pi / 4)
    return 2 * torch.stack([angle.cos(), angle.sin()], -1) + std * normal(seed, n, 2)


def two_modes(n, seed, left):
    where = torch.where(torch.arange(n) < round(left * n), -2.0, 2.0)
    return 0.1 * normal(seed, n, 1) + where[:, None]


@pytest.mark.parametrize("start", [zero, coarse])
@pytest.mark.parametrize(
    ("clouds", "tau"),
    [
        ((two_modes(100, 6, 0.9), two_modes(120, 7, 0.5)), 1.0),
        ((two_modes(100, 6, 0.9), two_modes(120, 7, 0.5)), 0.1),
        ((ring(240, 2, 0.3), ring(200, 3, 0.08)), 0.1),
        ((ring(600, 2, 0.3), ring(700, 3, 0.08)), 0.05),
    ],
    ids=["two modes, soft", "two modes, sharp", "ring", "large ring"],
)
def test_no_more_half_steps_than_balanced(clouds, tau, start):
    """At reaches up to the gaps; at ones far beyond, little more."""
    x, y = clouds
    how = x, y, uniform(x), uniform(y), squared, tau
    for tol in (1e-3, 1e-5):
        solver = Sinkhorn(tol=tol, max_half_steps=5000)
        balanced = solver.solve(EntropicProblem(*how), start)
        for rho in (0.1, 2.0, 5.0):
            found = solver.solve(EntropicProblem(*how, reach=rho), start)
            assert bool(found.converged)
            assert found.half_steps <= balanced.half_steps, rho
        far = solver.solve(EntropicProblem(*how, reach=200.0), start)
        assert bool(far.converged) and far.half_steps <= 1.5 * balanced.half_steps + 10


# What is refused.


@pytest.mark.parametrize("reach", [0, -1.0, math.nan, math.inf, True, "far", 1e31])
def test_a_reach_that_is_none_is_refused(reach):
    with pytest.raises(OptionError, match=r"^reach: got"):
        kd.SinkhornDrift(0.1, reach=reach)
    with pytest.raises(OptionError, match=r"^reach: got"):
        kd.sinkhorn_divergence(normal(0, 3, 2), normal(1, 3, 2), 0.1, reach=reach)


def test_masses_need_a_reach():
    with pytest.raises(OptionError, match=r"^masses: got 'gradient', needs a reach"):
        kd.SinkhornDrift(0.1, masses="gradient")
    with pytest.raises(OptionError, match=r"^masses: got 'rows'"):
        kd.SinkhornDrift(0.1, reach=1.0, masses="rows")


# A reach from data.


def test_two_modes_are_a_gap_apart():
    y = two_modes(1000, 0, 0.5)
    left, right = y[:500], y[500:]
    gap = float((right.min() - left.max()) ** 2) / 2
    within = (ref.mean_cost(left, left, "half_squared") + 0.01) / 2
    got = kd.reach_for_gaps(y)
    assert 3 * gap < got < 3 * gap + 10 * within + 0.01 and 15 < got < 24
    assert kd.reach_for_gaps(y, cost="squared") == pytest.approx(2 * got, rel=1e-6)
    assert kd.reach_for_gaps(3 * y) == pytest.approx(9 * got, rel=1e-6)


def test_the_tree_is_that_of_the_costs():
    """Gaps of 1, 6 and 1: the longest edge is 18, parts are the pairs beside it."""
    y = torch.tensor([[0.0], [1.0], [7.0], [8.0]])
    assert kd.reach_for_gaps(y) == pytest.approx(3 * 18 + 5 * 0.5)
    assert kd.reach_for_gaps(y, cost="euclidean") == pytest.approx(3 * 6 + 5 * 1.0)


@pytest.mark.parametrize("d", [1, 2, 6])
def test_one_mode_is_a_few_mean_costs_wide(d):
    y = normal(0, 1500, d)
    assert 3 <= kd.reach_for_gaps(y) / ref.mean_cost(y, y, "half_squared") <= 7


def test_large_data_are_sampled_the_same_every_time():
    y = torch.cat([normal(0, 3000, 2), normal(1, 3000, 2) + 20])
    got = kd.reach_for_gaps(y, cap=500)
    assert got == kd.reach_for_gaps(y, cap=500)
    assert got == pytest.approx(kd.reach_for_gaps(y), rel=0.3)


def test_data_without_gaps_or_shape_are_refused():
    with pytest.raises(ArgumentError, match=r"^y: got points that coincide"):
        kd.reach_for_gaps(torch.ones(5, 2))
    with pytest.raises(ShapeError, match="one cloud"):
        kd.reach_for_gaps(normal(0, 2, 5, 2))
    with pytest.raises(OptionError, match="cap"):
        kd.reach_for_gaps(normal(0, 5, 2), cap=0)


def test_a_lone_masked_particle_has_no_mass_to_overflow():
    """Next to no temperature: 1 − λ rounds to 0, and its row of the self problem has no atom."""
    x, y = torch.zeros(1, 2, dtype=F64), torch.ones(3, 2, dtype=F64)
    drift = kd.SinkhornDrift(1e-19, reach=1e3, masses="gradient", mask_self=True)
    torch.testing.assert_close(drift(x, y), torch.ones(1, 2, dtype=F64))


def test_points_without_weight_have_no_slope_of_the_divergence():
    x = torch.tensor([[1e19], [0.0]], dtype=F64, requires_grad=True)
    y, a = torch.tensor([[1e15]], dtype=F64), torch.tensor([1.0, 0.0])  # the second is near it
    kd.sinkhorn_divergence(x, y, 1e30, x_weights=a, reach=1e30).backward()
    assert torch.isfinite(x.grad).all() and float(x.grad[1]) == 0


@pytest.mark.parametrize("r", [1e-3, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("spread", [1e-6, 1.0, 30.0, 1e3, 1e5])
@pytest.mark.parametrize("rarest", [1.0, 1e-20, 1e-150])
def test_kept_masses_have_all_their_digits(r, spread, rarest):
    """The dual against sums in eighty digits, where r multiplies every rounding."""
    f = spread * normal(1, 200)
    a = normal(2, 200).abs() * rarest ** normal(3, 200).sigmoid()
    a[:5] = 0
    a = a / a.sum()
    with localcontext() as digits:
        digits.prec, digits.Emin, digits.Emax = 80, -(10**17), 10**17
        weights = [Decimal(w) for w in a.tolist()]
        exponents = [-Decimal(v) / Decimal(r) for v in f.tolist()]
        kept = sum(w * e.exp() for w, e in zip(weights, exponents, strict=True)) / sum(weights)
        kept = float(kept.ln() * (2 * Decimal(r) + 1))
    ratio = torch.tensor([r], dtype=F64)
    assert float(Relaxed(ratio).dual(a, f, a, f)) == pytest.approx(-kept, rel=1e-12)
