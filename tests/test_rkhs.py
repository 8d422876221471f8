"""KALE and chi-square drifts against dense solves of their duals, and what is known of both."""

from __future__ import annotations

import itertools
import warnings

import pytest
import reference as ref
import torch
from scipy.optimize import minimize

import keodrift as kd
from keodrift.errors import ArgumentError, CostError
from keodrift.flow import simulate

N, M, D = 9, 12, 2
BOTH = pytest.mark.parametrize("make", [kd.KALEDrift, kd.ChiSquareDrift])
TIGHT = {"tol": 1e-10}


def even(n):
    return torch.full((n,), 1 / n, dtype=torch.float64)


def gram(p, q, cost, tau):
    return (-ref.pairs(p, q, cost) / tau).exp()


def kale(x, y, a, b, cost, tau, lam):
    """α of the dual, min Σ α log(α/b) − α + ‖Σ a k(x) − Σ α k(y)‖²/2λ, and the value of KALE."""
    kxx, kxy, kyy = (gram(*pair, cost, tau) for pair in ((x, x), (x, y), (y, y)))

    def dual(s):
        log_alpha = b.log() + torch.from_numpy(s)
        alpha = log_alpha.exp()
        square = a @ kxx @ a - 2 * a @ kxy @ alpha + alpha @ kyy @ alpha
        value = (alpha * torch.from_numpy(s) - alpha).sum() + square / (2 * lam)
        slope = alpha * (torch.from_numpy(s) - (a @ kxy - kyy @ alpha) / lam)
        return float(value), slope.numpy()

    options = {"maxiter": 5000, "gtol": 1e-12, "ftol": 0, "maxcor": 50}
    found = minimize(
        dual, torch.zeros_like(b).numpy(), jac=True, method="L-BFGS-B", options=options
    )
    return b * torch.from_numpy(found.x).exp(), (1 + lam) * (1 + found.fun)


def chi_square(x, y, a, b, cost, tau, lam):
    """α from (Σ_p + λ)h = μ_q − μ_p in the span of all points, and the value of DrMMD."""
    points = torch.cat([x, y])
    full, weights = gram(points, points, cost, tau), torch.cat([0 * a, b])
    signed = torch.cat([a, -b])
    eye = torch.eye(len(points), dtype=full.dtype)
    h = torch.linalg.solve(weights[:, None] * full + lam * eye, signed)
    return -lam * h[len(x) :], (1 + lam) * signed @ full @ h


REFERENCES = {kd.KALEDrift: (kale, 1), kd.ChiSquareDrift: (chi_square, 2)}


def witness(z, x, y, a, alpha, cost, tau, scale):
    return scale * (gram(z, x, cost, tau) @ a - gram(z, y, cost, tau) @ alpha)


def drift(z, x, y, a, alpha, cost, tau, scale):
    model, data = (
        ((gram(z, u, cost, tau) * w)[..., None] * ref.gradients(z, u, cost)).sum(-2)
        for u, w in ((x, a), (y, alpha))
    )
    return scale / tau * (model - data)


@pytest.fixture
def clouds(cloud):
    a, b = cloud(2, N).exp(), cloud(3, M).exp()
    a[1], b[4] = 0, 0
    return cloud(0, N, D) + 1, cloud(1, M, D), a / a.sum(), b / b.sum()


@pytest.mark.parametrize("lam", [1.0, 0.03])
@pytest.mark.parametrize("cost", ["half_squared", "squared", "euclidean", "student"])
@BOTH
def test_field_and_witness_are_those_of_a_dense_solve(clouds, cloud, make, cost, lam):
    x, y, a, b = clouds
    reference, factor = REFERENCES[make]
    tau, z = 0.5, 2 * cloud(5, 4, D)
    scale = factor * (1 + lam) / lam
    kept = b > 0
    alpha, _ = reference(x, y[kept], a, b[kept], cost, tau, lam)
    rest = (x, y[kept], a, alpha, cost, tau, scale)
    given = make(tau, lam=lam, cost=ref.OWN.get(cost, cost), **TIGHT)
    field = given.fit(x, y, x_weights=a, y_weights=b)
    assert bool(field.converged) and "≤ 1e-10" in field.reason
    # The reference stops where rounding of its value hides the slope: 1e-12/λ in a value of h.
    close = {"rtol": 0, "atol": 1e-7 * scale}
    torch.testing.assert_close(field.witness(z), witness(z, *rest), **close)
    torch.testing.assert_close(field(z), drift(z, *rest), **close)
    torch.testing.assert_close(field(), drift(x, *rest), **close)


def test_data_that_the_model_covers_too_little_repel_in_the_chi_square_flow(cloud):
    """Where h < −1 a coefficient is negative, and its kernel changes sides."""
    x, y = cloud(0, N, D) + 3, cloud(1, M, D)
    a, b = even(N), even(M)
    alpha, _ = chi_square(x, y, a, b, "half_squared", 2.0, 0.01)
    assert bool((alpha < 0).any())
    field = kd.ChiSquareDrift(2.0, lam=0.01, **TIGHT).fit(x, y)
    expected = drift(x, x, y, a, alpha, "half_squared", 2.0, 2 * 1.01 / 0.01)
    torch.testing.assert_close(field(), expected, rtol=1e-8, atol=1e-8)


@BOTH
def test_the_error_that_is_reported_bounds_the_witness_everywhere(cloud, make):
    x, y, z = cloud(0, 40, D) + 1, cloud(1, 50, D), 3 * cloud(2, 200, D)
    exact = make(0.5, lam=0.05, **TIGHT).fit(x, y).witness(z)
    for tol in (1.0, 0.1, 1e-3):
        field = make(0.5, lam=0.05, tol=tol).fit(x, y)
        off = float((field.witness(z) - exact).abs().max())
        assert off <= float(field.solution.error) <= tol


@BOTH
def test_a_large_lambda_is_the_flow_of_mmd(clouds, make):
    x, y, a, b = clouds
    factor = REFERENCES[make][1]
    v = make(0.5, lam=1e7, tol=1e-12)(x, y, x_weights=a, y_weights=b)
    mmd = drift(x, x, y, a, b, "half_squared", 0.5, factor)
    torch.testing.assert_close(v, mmd, rtol=0, atol=1e-5)


@BOTH
def test_equal_clouds_are_at_rest(cloud, make):
    y = cloud(0, M, D)
    v = make(0.5, lam=0.01)(y[torch.randperm(M, generator=torch.Generator().manual_seed(0))], y)
    torch.testing.assert_close(v, torch.zeros_like(v), rtol=0, atol=1e-12)


@BOTH
def test_the_field_is_a_gradient_and_differentiable(cloud, make):
    field = make(0.5, lam=0.05).fit(cloud(0, N, D) + 1, cloud(1, M, D))
    z = cloud(2, 1, D)
    jacobian = torch.autograd.functional.jacobian(lambda q: field(q)[0], z)[:, 0]
    torch.testing.assert_close(jacobian, jacobian.mT, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(field, (z.requires_grad_(),), eps=1e-6, atol=1e-6)


@BOTH
def test_weights_are_repeated_points(cloud, make):
    x, y = cloud(0, 5, D) + 1, cloud(1, 6, D)
    i, j = torch.tensor([1, 2, 1, 3, 1]), torch.tensor([2, 1, 1, 1, 4, 0])
    given = make(0.5, lam=0.1, **TIGHT)
    weighted = given(x, y, x_weights=i.double(), y_weights=j.double())
    repeated = given(x.repeat_interleave(i, 0), y.repeat_interleave(j, 0))
    torch.testing.assert_close(weighted.repeat_interleave(i, 0), repeated, rtol=0, atol=1e-8)


@BOTH
@pytest.mark.parametrize("backend", ["tiled", "keops"])
def test_engines_agree(cloud, make, backend, request):
    if backend == "keops":
        request.getfixturevalue("keops")
    x, y = cloud(0, 60, D) + 1, cloud(1, 70, D)
    dense, other = (make(0.5, lam=0.1, tol=1e-6, backend=name)(x, y) for name in ("dense", backend))
    torch.testing.assert_close(dense, other, rtol=0, atol=1e-5)


@BOTH
def test_cells_agree_where_they_compress(cloud, make):
    x, y = (cloud(seed, 2000, D).float() + 1 - seed for seed in (0, 1))
    dense, cells = (make(0.05, lam=0.1, backend=name)(x, y) for name in ("dense", "cells"))
    torch.testing.assert_close(dense, cells, rtol=0, atol=1e-4)  # each sum leaves out 1e-5


@BOTH
def test_problems_of_a_batch_and_classes_are_solved_as_alone(cloud, make):
    x, y = cloud(0, 2, N, D) + torch.tensor([0.0, 2.0])[:, None, None], cloud(1, 2, M, D)
    given = make(0.5, lam=0.1, **TIGHT)
    alone = torch.stack([given(x[k], y[k]) for k in range(2)])
    torch.testing.assert_close(given(x, y), alone, rtol=0, atol=1e-8)
    labels = {
        "x_labels": torch.arange(2).repeat_interleave(N),
        "y_labels": torch.arange(2).repeat_interleave(M),
    }
    field = given.fit(x.flatten(0, 1), y.flatten(0, 1), **labels)
    torch.testing.assert_close(field(), alone.flatten(0, 1), rtol=0, atol=1e-8)
    assert field.converged.tolist() == [True, True] and "error" in field.reason
    again = given.fit(x.flatten(0, 1), y.flatten(0, 1), **labels, start=field)
    assert again.parts[0].field.solution.passes < field.parts[0].field.solution.passes


@BOTH
def test_draws_of_the_model_and_negatives_repel(cloud, make):
    x, y, u = cloud(0, N, D), cloud(1, M, D), cloud(2, 7, D) + 1
    given = make(0.5, lam=0.1, **TIGHT)
    other = given.fit(x, y, model=u)
    torch.testing.assert_close(other(u), given(u, y), rtol=0, atol=1e-8)
    both = given.fit(x, y, negatives=u, negative_weights=torch.ones(7))
    torch.testing.assert_close(both(), given.fit(torch.cat([x, u]), y)(x), rtol=0, atol=1e-8)


@BOTH
def test_a_relative_temperature_follows_the_scale(cloud, make):
    x, y = cloud(0, N, D) + 1, cloud(1, M, D)
    given = make(0.2, relative=True, lam=0.1, **TIGHT)
    torch.testing.assert_close(given(10 * x, 10 * y), given(x, y) / 10, rtol=0, atol=1e-8)


@BOTH
def test_a_warm_start_is_cheaper_and_gives_the_same(cloud, make):
    x, y = cloud(0, 60, D) + 1, cloud(1, 70, D)
    given = make(0.5, lam=0.1, tol=1e-6)
    before = given.fit(x, y)
    moved = x + 0.01 * before()
    warm, cold = given.fit(moved, y, start=before), given.fit(moved, y)
    assert warm.solution.passes < cold.solution.passes
    assert given.fit(x, y, start=before).solution.passes <= 3
    torch.testing.assert_close(warm(), cold(), rtol=0, atol=1e-5)
    # A start from anywhere is a guess alone.
    strange = given.fit(x, y, start=given.fit(x + 9, y - 9))
    torch.testing.assert_close(strange(), before(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 4.0])
@BOTH
def test_hard_problems_end_where_they_say(cloud, make, shift, dtype):
    """A wide kernel and a small λ: values of h between −240 and 5."""
    x, y = 0.3 * cloud(0, 100, D, dtype=dtype) + shift, cloud(1, 120, D, dtype=dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        field = make(10.0, lam=0.001, tol=1e-2 if dtype == torch.float64 else 0.3).fit(x, y)
    assert bool(field.converged) and not caught
    assert torch.isfinite(field()).all()


@BOTH
def test_a_solve_that_ends_early_warns(cloud, make):
    x, y = cloud(0, 60, D) + 1, cloud(1, 70, D)
    with pytest.warns(kd.ConvergenceWarning, match="at the cap, with error"):
        field = make(0.5, lam=0.01, max_passes=9).fit(x, y)
    assert not bool(field.converged) and field.solution.passes <= 9
    with pytest.warns(kd.ConvergenceWarning, match="what the dtype can tell"):
        make(0.5, lam=0.01, tol=1e-9).fit(x.float(), y.float())


@BOTH
def test_a_flow_lowers_its_divergence(cloud, make):
    x, y = 0.5 * cloud(0, 30, D) + 2, cloud(1, 40, D)
    reference, _ = REFERENCES[make]
    a, b = even(30), even(40)
    path = simulate(make(1.0, lam=0.1), x, y, 0.05, 60, keep=15).trajectory
    values = [float(reference(q, y, a, b, "half_squared", 1.0, 0.1)[1]) for q in path]
    assert all(after < before for before, after in itertools.pairwise(values))
    assert values[-1] < 0.2 * values[0]


@BOTH
def test_nonsense_is_refused(cloud, make):
    for wrong in (
        {"lam": 0.0},
        {"tol": -1.0},
        {"max_passes": 1.5},
        {"velocity": "barycentric"},
        {"mask_self": True},
    ):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            make(1.0, **wrong)
    with pytest.raises(CostError, match="not symmetric"):
        make(1.0, cost=ref.lopsided)(cloud(0, N, D), cloud(1, M, D))
