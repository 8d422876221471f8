"""The solver keeps its promises: tolerance, diagnostics, warnings, warm starts, acceleration."""

from __future__ import annotations

import math
import warnings

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.costs import squared
from keodrift.errors import ConvergenceWarning
from keodrift.transport import EntropicProblem, Sinkhorn, zero

F64 = torch.float64


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=F64)


def ring(n, seed, std=0.08):
    """8-Gaussians, as many points a mode as a random draw gives: masses differ by chance."""
    normal, generator = draw(seed), torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=generator).double() * (math.pi / 4)
    return 2 * torch.stack([angle.cos(), angle.sin()], -1) + std * normal(n, 2)


def board(n, seed):
    """A 4×4 checkerboard on [−2, 2]²."""
    generator = torch.Generator().manual_seed(seed)
    i = torch.randint(4, (n,), generator=generator)
    j = 2 * torch.randint(2, (n,), generator=generator) + i % 2
    corner = torch.stack([i, j], -1).double() - 2
    return corner + torch.rand(n, 2, generator=generator, dtype=F64)


def two_modes(n, seed, left):
    """Two modes at ±2 (std 0.1), a given share of them on the left."""
    x = 0.1 * draw(seed)(n, 1)
    x[: round(left * n)] -= 2
    x[round(left * n) :] += 2
    return x


# Name: clouds, τ for C = ‖x−y‖², tolerance. All but the first are slow for plain half-steps.
PROBLEMS = {
    "blob to ring": (lambda: (0.5 * draw(0)(200, 2), ring(200, 1)), 0.1, 1e-3),
    "half-trained ring, τ = 0.1": (lambda: (ring(240, 2, 0.3), ring(200, 3)), 0.1, 1e-2),
    "half-trained ring, τ = 0.05": (lambda: (ring(240, 2, 0.3), ring(200, 3)), 0.05, 1e-2),
    "trained board": (lambda: (board(200, 4), board(220, 5)), 0.05, 1e-3),
    "two modes": (lambda: (two_modes(100, 6, 0.9), two_modes(120, 7, 0.5)), 1.0, 1e-3),
}


@pytest.fixture(params=PROBLEMS)
def hard(request):
    clouds, tau, tol = PROBLEMS[request.param]
    return *clouds(), tau, tol


def errors_of(field, p):
    """Column marginal errors of both row-normalised plans, densely, in float64."""
    data = ref.log_kernel(p.x, p.y, p.cost, p.tau)
    model = ref.log_kernel(p.x, p.z, p.cost, p.tau)
    return (
        ref.column_error(data, p.a, p.b, field.data.bias),
        ref.column_error(model, p.a, p.c, field.model.bias),
    )


def test_tolerance_is_honoured_and_reported(hard):
    x, y, tau, tol = hard
    for asked in (tol, tol / 100):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            field = kd.SinkhornDrift(tau, cost="squared", tol=asked).fit(x, y)
        true = max(errors_of(field, ref.problem(x, y, tau, cost="squared")))
        assert bool(field.converged)
        assert float(field.marginal_error) <= asked
        # What is reported was measured before the last half-step, which cannot raise it.
        assert float(true) <= float(field.marginal_error) * (1 + 1e-6) + 1e-14
        assert isinstance(field.half_steps, int) and field.half_steps >= 1


def test_tolerance_is_honoured_in_single_precision(hard):
    x, y, tau, tol = hard
    x, y = x.float(), y.float()
    p = ref.problem(x, y, tau, cost="squared")
    field = kd.SinkhornDrift(tau, cost="squared", tol=tol).fit(x, y)
    # The potentials of a float32 solve, judged in float64: rounding of a logit on top.
    rounding = 4 * torch.finfo(torch.float32).eps * (1 + ref.logit_scale(p))
    assert bool(field.converged)
    assert float(max(errors_of(field, p))) <= tol + rounding


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("cost", ["half_squared", "euclidean", "student"])
@pytest.mark.parametrize("extra", [False, True], ids=["", "negatives"])
def test_tolerance_with_weights_and_negatives(cloud, backend, cost, extra):
    x, y, u = cloud(0, 40, 3), 0.6 * cloud(1, 55, 3) + 1, cloud(2, 20, 3) - 1
    a, b, w = cloud(3, 40).exp(), cloud(4, 55).exp(), cloud(5, 20).exp()
    a[:5], b[::7], w[3] = 0, 0, 0
    tau = 0.05 * ref.mean_cost(x, y, cost)
    short = {"u": u, "w": w} if extra else {}
    long = {"negatives": u, "negative_weights": w} if extra else {}
    p = ref.problem(x, y, tau, cost=cost, a=a, b=b, **short)
    drift = kd.SinkhornDrift(
        tau, tol=1e-8, cost=ref.student if cost == "student" else cost, backend=backend
    )
    field = drift.fit(x, y, x_weights=a, y_weights=b, **long)
    assert float(max(errors_of(field, p))) <= 1e-8 * (1 + 1e-6)
    assert bool(field.converged)


def test_field_of_hard_problems_is_the_brute_force_one(hard):
    x, y, tau, _ = hard
    p = ref.problem(x, y, tau, cost="squared")
    expected = ref.sinkhorn(p)()
    got = kd.SinkhornDrift(tau, cost="squared", tol=1e-10, max_half_steps=20_000)(x, y)
    # On these problems a marginal error is amplified in the field at most ten-thousandfold.
    assert float((got - expected).norm() / expected.norm()) < 1e-6


def test_acceleration_is_never_worse_than_plain_half_steps(hard):
    x, y, tau, tol = hard
    p = ref.problem(x, y, tau, cost="squared")
    logits = ref.log_kernel(x, y, "squared", tau)
    for asked in (tol, tol / 100):
        field = kd.SinkhornDrift(tau, cost="squared", tol=asked).fit(x, y)
        assert field.half_steps <= ref.passes_to(logits, p.a, p.b, asked)


def test_mass_between_far_modes_is_moved():
    """A fixed budget does not see it; a converged solve does."""
    x, y = two_modes(100, 6, 0.9), two_modes(120, 7, 0.5)
    p = ref.problem(x, y, 0.3, cost="squared")
    expected = ref.sinkhorn(p)()
    error = {}
    for name, options in {"budget": {"half_steps": 41}, "solved": {"tol": 1e-4}}.items():
        got = kd.SinkhornDrift(0.3, cost="squared", **options)(x, y)
        error[name] = float((got - expected).norm() / expected.norm())
    assert error["budget"] > 0.5
    assert error["solved"] < 1e-2


def test_the_cap_warns_and_never_raises(hard):
    x, y, tau, _ = hard
    drift = kd.SinkhornDrift(tau, cost="squared", tol=1e-9, max_half_steps=4)
    with pytest.warns(ConvergenceWarning, match=r"max_half_steps"):
        field = drift.fit(x, y)
    assert not bool(field.converged)
    true = float(max(errors_of(field, ref.problem(x, y, tau, cost="squared"))))
    assert float(field.marginal_error) >= true * (1 - 1e-6) > 1e-9
    assert field.half_steps <= 4 + 1  # the barycentre's half-step is the last
    assert torch.isfinite(field()).all()


def test_the_warning_points_at_the_users_call(cloud):
    x, y = cloud(0, 5, 2), cloud(1, 6, 2)
    drift = kd.SinkhornDrift(0.1, tol=1e-12, max_half_steps=2)
    for call in (drift.fit, drift, lambda x, y: kd.drift_loss(x, y, drift)):
        with pytest.warns(ConvergenceWarning) as caught:
            call(x, y)
        assert caught[0].filename == __file__


def test_a_cap_of_one_still_gives_a_field(cloud):
    with pytest.warns(ConvergenceWarning):
        v = kd.SinkhornDrift(0.1, tol=1e-12, max_half_steps=1)(cloud(0, 5, 2), cloud(1, 6, 2))
    assert torch.isfinite(v).all()


def test_an_unreachable_tolerance_ends_with_a_warning(cloud):
    x, y = cloud(0, 20, 2, dtype=torch.float32), cloud(1, 25, 2, dtype=torch.float32)
    with pytest.warns(ConvergenceWarning):
        field = kd.SinkhornDrift(0.05, tol=1e-30, max_half_steps=300).fit(x, y)
    assert torch.isfinite(field()).all() and not bool(field.converged)
    p = ref.problem(x, y, 0.05)
    rounding = 4 * torch.finfo(torch.float32).eps * (1 + ref.logit_scale(p))
    assert float(max(errors_of(field, p))) <= rounding  # trying on did no harm


def test_fixed_half_steps_do_not_warn_and_are_counted(cloud):
    x, y = ring(60, 2, 0.3), ring(50, 3)
    p = ref.problem(x, y, 0.1, cost="squared")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        field = kd.SinkhornDrift(0.1, cost="squared", half_steps=11).fit(x, y)
    assert field.half_steps == 11
    torch.testing.assert_close(
        field.marginal_error, max(errors_of(field, p)), rtol=1e-10, atol=1e-14
    )


def test_diagnostics_are_one_a_problem(cloud):
    x, y = cloud(0, 2, 3, 9, 2), cloud(1, 2, 3, 12, 2)
    x[0] *= 0.1
    field = kd.SinkhornDrift(0.1, tol=1e-7).fit(x, y)
    assert field.converged.shape == field.marginal_error.shape == (2, 3)
    assert field.converged.dtype == torch.bool and bool(field.converged.all())
    p = ref.problem(x, y, 0.1)
    data, model = errors_of(field, p)
    bound = field.marginal_error * (1 + 1e-6) + 1e-14
    assert bool((torch.maximum(data, model) <= bound).all())
    assert float(field.marginal_error.max()) <= 1e-7


def test_fields_without_a_solve_have_no_marginals(cloud):
    field = kd.OneSidedDrift(0.1).fit(cloud(0, 5, 2), cloud(1, 6, 2))
    assert field.half_steps == 1 and field.marginal_error is None and field.converged is None


def test_a_warm_start_is_cheaper_and_the_same(hard):
    x, y, tau, tol = hard
    for asked in (tol, tol / 100):
        drift = kd.SinkhornDrift(tau, cost="squared", tol=asked)
        first = drift.fit(x, y)
        moved = x + 0.01 * first()
        warm = drift.fit(moved, y, start=first)
        assert bool(warm.converged)
        # A coarse start may need as few full passes, but pays for its levels; compare without.
        a, b = (torch.full((len(z),), 1 / len(z), dtype=torch.float64) for z in (x, y))
        cold = drift.solver.solve(EntropicProblem(moved, y, a, b, squared, tau), zero)
        assert warm.couplings[0].half_steps < cold.half_steps
        # Where nothing moved there is next to nothing left to do.
        assert drift.fit(x, y, start=first).half_steps <= 3


def test_a_warm_start_gives_the_same_field(hard):
    x, y, tau, _ = hard
    drift = kd.SinkhornDrift(tau, cost="squared", tol=1e-9, max_half_steps=20_000)
    first = drift.fit(x, y)
    moved = x + 0.01 * first()
    cold, warm = drift.fit(moved, y), drift.fit(moved, y, start=first)
    assert bool(warm.converged)
    assert float((warm() - cold()).norm() / cold().norm()) < 1e-5


def test_a_warm_start_carries_over_to_other_sizes_and_weights(cloud):
    drift = kd.SinkhornDrift(0.1, cost="squared", tol=1e-9)
    first = drift.fit(ring(120, 2, 0.3), ring(150, 3))
    x, y, u = ring(100, 12, 0.3), ring(90, 13), cloud(4, 30, 2)
    b = cloud(5, 90).exp()
    for options in [{}, {"y_weights": b}, {"negatives": u}]:
        cold, warm = drift.fit(x, y, **options), drift.fit(x, y, start=first, **options)
        assert bool(warm.converged)
        assert float((warm() - cold()).norm() / cold().norm()) < 1e-5


def test_a_warm_start_from_another_temperature_still_converges():
    x, y = ring(120, 2, 0.3), ring(150, 3)
    first = kd.SinkhornDrift(1.0, cost="squared").fit(x, y)
    drift = kd.SinkhornDrift(0.1, cost="squared", tol=1e-9)
    cold, warm = drift.fit(x, y), drift.fit(x, y, start=first)
    assert bool(warm.converged)
    assert float((warm() - cold()).norm() / cold().norm()) < 1e-5


def test_coarse_levels_change_the_price_and_not_the_answer():
    """Clouds large enough to be clustered first; weights with zeros go along."""
    x, y = ring(2300, 2, 0.3), ring(2100, 3)
    b = torch.rand(2100, generator=torch.Generator().manual_seed(0), dtype=F64)
    b[::3] = 0
    p = ref.problem(x, y, 0.1, cost="squared", b=b)
    drift = kd.SinkhornDrift(0.1, cost="squared", tol=1e-4, backend="tiled")
    field = drift.fit(x, y, y_weights=b)
    assert bool(field.converged)
    assert float(max(errors_of(field, p))) <= 1e-4 * (1 + 1e-6)
    assert field.half_steps <= 60  # plain half-steps need hundreds


def test_the_self_problem_takes_few_passes_at_any_temperature():
    """OT(q, q) contracts by ½ a pass whatever τ: about 20 passes to 1e-6."""
    x = ring(150, 2)
    for tau in (1e-3, 0.1, 10.0):
        a = torch.full((150,), 1 / 150, dtype=F64)
        problem = EntropicProblem(x, x, a, a, squared, tau, symmetric=True)
        own = Sinkhorn(tol=1e-6, max_half_steps=100).solve(problem, zero)
        logits = ref.log_kernel(x, x, "squared", tau)
        assert float(ref.column_error(logits, a, a, own.bias)) <= 1e-6 * (1 + 1e-6)
        assert own.half_steps <= 25


def test_masked_sinkhorn_meets_its_own_marginals(cloud):
    x, y = cloud(0, 12, 2), cloud(1, 15, 2)
    field = kd.SinkhornDrift(0.5, tol=1e-10, mask_self=True).fit(x, y)
    p = ref.problem(x, y, 0.5, mask=True)
    logits = ref.log_kernel(x, x, "half_squared", 0.5, mask=True)
    assert float(ref.column_error(logits, p.a, p.c, field.model.bias)) <= 1e-10 * (1 + 1e-6)
    torch.testing.assert_close(field(), ref.sinkhorn(p)(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("cost", ["half_squared", "lopsided"])
def test_the_self_problem_reports_the_error_of_its_plan(cost):
    """Also where the kernel is not positive definite, or the cost not symmetric."""
    x, y = ring(80, 2, 0.3), ring(70, 3)
    for tol in (1e-2, 1e-5):
        field = kd.SinkhornDrift(0.3, cost=ref.OWN.get(cost, cost), tol=tol).fit(x, y)
        p = ref.problem(x, y, 0.3, cost=cost)
        logits = ref.log_kernel(x, x, cost, 0.3)
        true = float(ref.column_error(logits, p.a, p.a, field.model.bias))
        assert true <= float(field.couplings[1].marginal_error) <= tol


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_what_single_precision_cannot_tell_is_not_called_converged(backend):
    x, y = ring(300, 2, 0.3).float() + 40, ring(280, 3).float() + 40
    drift = kd.SinkhornDrift(0.02, cost="squared", tol=1e-7, backend=backend)
    with pytest.warns(ConvergenceWarning, match="what the dtype can tell.*use float64"):
        field = drift.fit(x, y)
    data = field.couplings[0]
    assert not bool(field.converged) and data.half_steps < 1000
    logits = ref.log_kernel(x, y, "squared", 0.02)
    uniform = torch.full((300,), 1 / 300, dtype=F64), torch.full((280,), 1 / 280, dtype=F64)
    assert float(ref.column_error(logits, *uniform, data.bias)) <= float(data.marginal_error)
    assert bool(drift.fit(x.double(), y.double()).converged)


@pytest.mark.parametrize("drift_tol", [1e-1, 1e-3, 1e-6])
def test_a_solve_far_below_its_tolerance_goes_on_until_the_drift_stands_still(drift_tol):
    random = torch.Generator().manual_seed(113)
    x, y = (torch.randn(60, 2, generator=random, dtype=torch.float64) for _ in range(2))
    y[:30] += 3
    exact = kd.SinkhornDrift(0.3, tol=1e-12)(x, y)
    v = kd.SinkhornDrift(0.3, tol=0.1, drift_tol=drift_tol)(x, y)
    assert float((v - exact).norm() / exact.norm()) <= drift_tol


def test_no_error_is_more_than_distributions_are_apart(cloud):
    x, y = cloud(0, 50, 2, dtype=torch.float32), cloud(1, 50, 2, dtype=torch.float32)
    x[0] = 1e6  # whose roundings could hide anything
    with pytest.warns(ConvergenceWarning, match="use float64"):
        field = kd.SinkhornDrift(0.05).fit(x, y)
    assert 1 < float(field.marginal_error) <= 2


def test_a_mask_that_leaves_no_coupling_is_said(cloud):
    x, y = cloud(0, 5, 2), cloud(1, 6, 2)
    heavy = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    drift = kd.SinkhornDrift(0.5, mask_self=True)
    for particles, options in ((x, {"x_weights": heavy}), (x[:1], {}), (x[:1], {"negatives": y})):
        with pytest.warns(
            ConvergenceWarning, match="without the pairs i = i.*mask_self=False"
        ) as w:
            field = drift.fit(particles, y, **options)
        assert not any("float64" in str(one.message) for one in w)  # which would not help
        assert not bool(field.converged) and float(field.marginal_error) == 2
        assert "without the pairs" in field.reason and torch.isfinite(field()).all()
    even = drift.fit(x, y, x_weights=torch.tensor([0.5, 0.125, 0.125, 0.125, 0.125]))
    assert torch.isfinite(even()).all()


@pytest.mark.parametrize("tau", [0.1, 0.02])
def test_a_drift_is_solved_until_it_stands_still(tau):
    """Nearly trained: the field is small, and a marginal tolerance says little about it."""
    x, y = ring(400, 2), ring(400, 3)
    exact = kd.SinkhornDrift(tau, cost="squared", tol=1e-10, max_half_steps=20_000)(x, y)
    for share in (0.1, 0.01):
        field = kd.SinkhornDrift(tau, cost="squared", drift_tol=share).fit(x, y)
        assert float((field() - exact).norm() / exact.norm()) <= share
        assert bool(field.converged)
    loose = kd.SinkhornDrift(tau, cost="squared", tol=1e-2)(x, y)
    assert float((loose - exact).norm() / exact.norm()) > 0.02
    with pytest.warns(ConvergenceWarning, match="drift still changes"):
        kd.SinkhornDrift(tau, cost="squared", drift_tol=1e-6, max_half_steps=40).fit(x, y)
