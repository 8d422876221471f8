"""Facts with a known answer: closed forms, conservation laws and the counter-examples."""

from __future__ import annotations

import math

import pytest
import reference as ref
import torch
from scipy.optimize import fsolve

import keodrift as kd

F64 = torch.float64
EVERY_UNMASKED = [
    kd.OneSidedDrift(0.7, mask_self=False),
    kd.TwoSidedDrift(0.7, mask_self=False),
    kd.TwoSidedDrift(0.7, form="joint", mask_self=False),
    kd.TwoSidedDrift(0.7, form="joint", floor=1e-3, mask_self=False),
    kd.SinkhornDrift(0.7, half_steps=1),
    kd.SinkhornDrift(0.7, half_steps=3),
    kd.SinkhornDrift(0.7, half_steps=41),
    kd.SinkhornDrift(0.7, tol=1e-12),
]


def points(*rows):
    return torch.tensor(rows, dtype=F64).reshape(len(rows), -1)


@pytest.mark.parametrize("cost", ["half_squared", "squared", "euclidean"])
@pytest.mark.parametrize("velocity", ["barycentric", "gradient"])
def test_one_half_step_is_the_unmasked_one_sided_field(cloud, cost, velocity):
    x, y, options = cloud(0, 8, 3), cloud(1, 11, 3) + 1, {"cost": cost, "velocity": velocity}
    one = kd.OneSidedDrift(0.8, mask_self=False, **options)
    t1 = kd.SinkhornDrift(0.8, half_steps=1, **options)
    assert torch.equal(one(x, y), t1(x, y))
    z = cloud(2, 5, 3)
    assert torch.equal(one.fit(x, y)(z), t1.fit(x, y)(z))


@pytest.mark.parametrize("drift", EVERY_UNMASKED, ids=repr)
def test_equal_clouds_up_to_order_are_at_rest(cloud, drift):
    x = cloud(3, 12, 2)
    y = x[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    p = ref.problem(x, y, 0.7)
    # A converged solve is at rest to its tolerance; the others are to rounding alone.
    slack = 1e-10 if getattr(drift, "half_steps", 0) is None else 0
    assert float(drift(x, y).abs().max()) <= slack + ref.tolerance(p, passes=41)


@pytest.mark.parametrize("weighted", [False, True])
def test_converged_sinkhorn_moves_the_mean_onto_the_mean(cloud, weighted):
    x, y = cloud(4, 15, 3), 0.5 * cloud(5, 22, 3) + 2
    a = cloud(6, 15).exp() if weighted else None
    b = cloud(7, 22).exp() if weighted else None
    v = kd.SinkhornDrift(0.5, tol=1e-12)(x, y, x_weights=a, y_weights=b)
    a, b = ref.normalised(a, x), ref.normalised(b, y)
    # Both column marginals within 1e-12 in L1, so the means within that times the reach.
    reach = float(y.abs().max() + x.abs().max())
    torch.testing.assert_close(a @ v, b @ y - a @ x, rtol=0, atol=1e-12 * reach + 1e-14)


def quadrature(mean, covariance, half_width=22, step=0.25):
    """A Gaussian as weighted grid points: the trapezoidal rule is exact to ~1e-10 here."""
    line = torch.arange(-half_width, half_width + 1, dtype=F64) * step
    grid = torch.cartesian_prod(line, line)
    density = (-0.5 * ((grid @ torch.linalg.inv(covariance)) * grid).sum(-1)).exp()
    return grid + mean, density / density.sum()


M1, S1 = points([0.3, -0.2])[0], points([1.0, 0.3], [0.3, 0.6])
M2, S2 = points([-0.4, 0.5])[0], points([0.5, -0.2], [-0.2, 0.9])
TAU = 0.5


def test_sinkhorn_between_gaussians_is_the_known_affine_map():
    (x, a), (y, b) = quadrature(M1, S1), quadrature(M2, S2)
    field = kd.SinkhornDrift(TAU, tol=1e-10).fit(x, y, x_weights=a, y_weights=b)
    z = M1 + torch.cartesian_prod(*[torch.linspace(-1.5, 1.5, 7, dtype=F64)] * 2)
    expected = ref.gaussian_barycentre(z, M1, S1, M2, S2, TAU) - ref.gaussian_barycentre(
        z, M1, S1, M1, S1, TAU
    )
    # What is left is the cut of the grid at 5.5 standard deviations.
    torch.testing.assert_close(field(z), expected, rtol=0, atol=1e-6)


def test_one_sided_between_gaussians_is_the_known_affine_map():
    (x, a), (y, b) = quadrature(M1, S1), quadrature(M2, S2)
    field = kd.OneSidedDrift(TAU, mask_self=False).fit(x, y, x_weights=a, y_weights=b)
    z = M1 + torch.cartesian_prod(*[torch.linspace(-1.5, 1.5, 7, dtype=F64)] * 2)
    expected = ref.gaussian_one_sided(z, M2, S2, TAU) - ref.gaussian_one_sided(z, M1, S1, TAU)
    torch.testing.assert_close(field(z), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.7, math.pi / 2, 2.5])
@pytest.mark.parametrize(("r", "s", "tau"), [(1.0, 1.0, 1.0), (0.5, 2.0, 0.3), (2.0, 0.3, 5.0)])
def test_two_centred_points_are_hyperbolic_tangents(angle, r, s, tau):
    a_hat, b_hat = points([1.0, 0.0]), points([math.cos(angle), math.sin(angle)])
    x, y = torch.cat([-r * a_hat, r * a_hat]), torch.cat([-s * b_hat, s * b_hat])
    v = kd.SinkhornDrift(tau, tol=1e-13)(x, y)[0]
    inner = float((a_hat * b_hat).sum())
    expected = -math.tanh(r * s * inner / tau) * s * b_hat[0]
    expected = expected + math.tanh(r**2 / tau) * r * a_hat[0]
    torch.testing.assert_close(v, expected, rtol=0, atol=1e-12)
    at_rest = r == s and angle == 0.0
    assert (float(v.norm()) < 1e-12) == at_rest


def test_one_sided_field_vanishes_on_different_sets_where_sinkhorn_does_not():
    p = points([0.0], [1.0])

    def one_sided(ab):
        q = torch.tensor(ab, dtype=F64)[:, None]
        bias = torch.full((2,), math.log(0.5), dtype=F64)
        towards, away = (ref.barycentre(p, c, bias, "squared", 1.0) for c in (p, q))
        return (towards - away)[:, 0].numpy()

    ab = fsolve(one_sided, (-1.35, 0.75), xtol=1e-12)
    assert -1.5 <= ab[0] <= -1.2 and 0.6 <= ab[1] <= 0.9
    q = torch.tensor(ab, dtype=F64)[:, None]
    blind = kd.OneSidedDrift(1.0, cost="squared", mask_self=False)
    seeing = kd.SinkhornDrift(1.0, cost="squared", tol=1e-12)
    # Evaluated at the atoms of p, with q as the model and with p as the model.
    assert float(blind.fit(q, p)(p).abs().max()) < 1e-10
    assert float(blind(p, q).abs().max()) < 1e-10
    assert float(seeing.fit(q, p)(p).abs().max()) > 0.05
    assert float(seeing(p, q).abs().max()) > 0.05
    assert float(seeing(q, p).abs().max()) > 0.05


def test_far_modes_are_seen_by_converged_sinkhorn_alone():
    distance, tau, w_p, w_q = 4.0, 1.0, 0.6, 0.3
    kappa = math.exp(-(distance**2) / (2 * tau))
    atoms = points([0.0], [distance])
    weights = {
        "x_weights": torch.tensor([w_q, 1 - w_q]),
        "y_weights": torch.tensor([w_p, 1 - w_p]),
    }
    right = kd.OneSidedDrift(tau, mask_self=False)(atoms, atoms, **weights)[1, 0]
    odds_p, odds_q = w_p / (1 - w_p), w_q / (1 - w_q)
    # Next order: κ times the odds, relative to the leading term.
    expected = -distance * kappa * (odds_p - odds_q)
    assert float(right) == pytest.approx(expected, rel=2 * kappa * (odds_p + odds_q))
    assert abs(float(right)) < 1e-2

    right = kd.SinkhornDrift(tau, tol=1e-12)(atoms, atoms, **weights)[1, 0]
    # The self coupling still leaks κ·√(w/(1−w)) of the mass; the cross one leaks κ².
    expected = -distance * (w_p - w_q) / (1 - w_q)
    expected += distance * kappa * math.sqrt(odds_q)
    assert float(right) == pytest.approx(expected, abs=10 * distance * kappa**2)


def test_loss_gradient_is_minus_v_over_n_and_its_step_is_eulers(cloud):
    x, y, eta = cloud(8, 9, 2), cloud(9, 13, 2) + 1, 0.1
    for drift in [kd.OneSidedDrift(0.5), kd.SinkhornDrift(0.5, half_steps=11)]:
        free = x.clone().requires_grad_()
        kd.drift_loss(free, y, drift).backward()
        v = drift(x, y)
        torch.testing.assert_close(free.grad, -v / 9, rtol=1e-12, atol=1e-15)
        step = x - eta * 9 * free.grad
        torch.testing.assert_close(step, x + eta * v, rtol=1e-12, atol=1e-15)


def test_loss_value_is_half_the_mean_square(cloud):
    x, y = cloud(8, 9, 2), cloud(9, 13, 2) + 1
    drifts = [kd.OneSidedDrift(0.5), kd.TwoSidedDrift(0.2)]
    v = [drift(x, y) for drift in drifts]
    loss = kd.drift_loss(x, y, drifts)
    torch.testing.assert_close(loss, (v[0] + v[1]).square().sum(-1).mean() / 2)
    v = [one / one.square().mean().sqrt() for one in v]
    loss = kd.drift_loss(x, y, drifts, normalize=True)
    torch.testing.assert_close(loss, (v[0] + v[1]).square().sum(-1).mean() / 2)
