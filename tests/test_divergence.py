"""The Sinkhorn divergence: its value, and its gradient −aV."""

from __future__ import annotations

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.errors import ConvergenceWarning

COSTS = ["half_squared", "squared", "euclidean"]
ANY_COST = [*COSTS, "lopsided"]


@pytest.fixture
def clouds(cloud):
    return cloud(0, 9, 2), 0.6 * cloud(1, 12, 2) + 0.7, cloud(2, 9).exp(), cloud(3, 12).exp()


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("cost", ANY_COST)
@pytest.mark.parametrize("rho", [0.1, 1.0, 100.0])
def test_value_is_the_debiased_transport_cost(clouds, cost, rho, weighted):
    x, y, a, b = clouds
    tau = rho * ref.mean_cost(x, y, cost)
    short = {"a": a, "b": b} if weighted else {}
    long = {"x_weights": a, "y_weights": b} if weighted else {}
    expected = ref.divergence(x, y, tau, cost=cost, **short)
    own = ref.OWN.get(cost, cost)
    got = kd.sinkhorn_divergence(x, y, tau, cost=own, tol=1e-9, **long)
    assert got.shape == () and got.dtype == torch.float64
    # The dual is exact to second order in the marginal error; what is left is rounding of values
    # that are of the size of τ and of the cost.
    torch.testing.assert_close(
        got, expected, rtol=0, atol=1e-13 * (tau + ref.mean_cost(x, y, cost))
    )


def test_value_at_the_default_tolerance_is_exact_to_second_order(clouds):
    x, y, *_ = clouds
    expected = ref.divergence(x, y, 0.1)
    assert float(kd.sinkhorn_divergence(x, y, 0.1)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("cost", COSTS)
def test_gradient_is_minus_the_weighted_drift(clouds, cost, weighted):
    x, y, a, b = clouds
    tau = 0.3 * ref.mean_cost(x, y, cost)
    long = {"x_weights": a, "y_weights": b} if weighted else {}
    v = kd.SinkhornDrift(tau, cost=cost, tol=1e-10, velocity="gradient")(x, y, **long)
    free = x.clone().requires_grad_()
    value = kd.sinkhorn_divergence(free, y, tau, cost=cost, tol=1e-10, **long)
    (3 * value).backward()
    weights = ref.normalised(a if weighted else None, x)[:, None]
    torch.testing.assert_close(free.grad, -3 * weights * v, rtol=0, atol=1e-8)


@pytest.mark.parametrize("cost", ANY_COST)
def test_gradients_in_both_clouds_are_finite_differences(clouds, cost):
    x, y, a, b = clouds
    x, y = x[:3].requires_grad_(), y[:4].requires_grad_()
    tau, own = 0.5 * ref.mean_cost(x.detach(), y.detach(), cost), ref.OWN.get(cost, cost)

    def value(x, y):
        return kd.sinkhorn_divergence(
            x, y, tau, cost=own, tol=1e-12, x_weights=a[:3], y_weights=b[:4]
        )

    assert torch.autograd.gradcheck(value, (x, y), eps=1e-5, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("cost", COSTS)
def test_identical_clouds_are_at_distance_zero(cloud, cost):
    x = cloud(0, 10, 3)
    other = x[torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    free = x.clone().requires_grad_()
    value = kd.sinkhorn_divergence(free, other, 0.4, cost=cost, tol=1e-10)
    value.backward()
    assert abs(value.item()) < 1e-13
    assert float(free.grad.abs().max()) < 1e-9


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("seed", range(6))
def test_it_is_not_negative_and_positive_between_different_clouds(cloud, cost, seed):
    x, y = cloud(seed, 7, 2), cloud(seed + 50, 7, 2)
    for tau in (0.01, 0.3, 10.0):
        assert float(kd.sinkhorn_divergence(x, y, tau, cost=cost, tol=1e-8)) > 0
        near = x + 1e-4 * cloud(seed + 90, 7, 2)
        assert float(kd.sinkhorn_divergence(x, near, tau, cost=cost, tol=1e-8)) > -1e-13


def test_it_is_symmetric_and_translates(clouds):
    x, y, a, b = clouds
    there = kd.sinkhorn_divergence(x, y, 0.3, x_weights=a, y_weights=b, tol=1e-10)
    back = kd.sinkhorn_divergence(y, x, 0.3, x_weights=b, y_weights=a, tol=1e-10)
    torch.testing.assert_close(there, back, rtol=1e-11, atol=0)
    # A translate of a cloud is half the squared length away, whatever the temperature.
    shift = torch.tensor([3.0, -4.0], dtype=torch.float64)
    for tau in (0.1, 10.0):
        moved = kd.sinkhorn_divergence(x, x + shift, tau, tol=1e-10)
        assert float(moved) == pytest.approx(12.5, rel=1e-11)


def test_batch_axes_are_independent_problems(cloud):
    x, y = cloud(0, 2, 3, 6, 2).requires_grad_(), cloud(1, 2, 3, 8, 2)
    a = cloud(2, 2, 3, 6).exp()
    got = kd.sinkhorn_divergence(x, y, 0.5, x_weights=a, tol=1e-10)
    assert got.shape == (2, 3)
    probe = cloud(3, 2, 3)
    (grad,) = torch.autograd.grad((got * probe).sum(), x)
    for i in range(2):
        for j in range(3):
            part = x[i, j].detach().clone().requires_grad_()
            one = kd.sinkhorn_divergence(part, y[i, j], 0.5, x_weights=a[i, j], tol=1e-10)
            (one * probe[i, j]).backward()
            torch.testing.assert_close(got[i, j], one, rtol=0, atol=1e-12)
            torch.testing.assert_close(grad[i, j], part.grad, rtol=0, atol=1e-8)


def test_points_of_weight_zero_are_not_there(clouds):
    x, y, a, b = clouds
    a[1], b[::3] = 0, 0
    got = kd.sinkhorn_divergence(x, y, 0.4, x_weights=a, y_weights=b, tol=1e-10)
    i, j = a > 0, b > 0
    kept = kd.sinkhorn_divergence(x[i], y[j], 0.4, x_weights=a[i], y_weights=b[j], tol=1e-10)
    torch.testing.assert_close(got, kept, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_value_and_gradient_keep_the_dtype(cloud, dtype):
    x = cloud(0, 8, 2, dtype=dtype).requires_grad_()
    y = cloud(1, 9, 2, dtype=dtype)
    value = kd.sinkhorn_divergence(x, y, 0.5, tol=1e-4)
    value.backward()
    assert value.dtype == x.grad.dtype == dtype
    exact = kd.sinkhorn_divergence(x.detach().double(), y.double(), 0.5)
    # One rounding of the result in its dtype, on top of float32 arithmetic and the tolerance.
    rel = torch.finfo(dtype).eps + 1e-4
    assert value.item() == pytest.approx(exact.item(), rel=rel)


def test_the_cap_warns(clouds):
    x, y, *_ = clouds
    with pytest.warns(ConvergenceWarning):
        value = kd.sinkhorn_divergence(x, y, 0.01, tol=1e-12, max_half_steps=3)
    assert torch.isfinite(value)


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_engines_agree(clouds, backend):
    x, y, a, b = clouds
    got = kd.sinkhorn_divergence(x, y, 0.4, x_weights=a, y_weights=b, tol=1e-10, backend=backend)
    expected = ref.divergence(x, y, 0.4, a=a, b=b)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("tau", [1e4, 1e8])
def test_large_temperatures_cost_no_digits(cloud, tau):
    """Single precision on pairs would leave τ times its rounding."""
    x, y = cloud(0, 20, 2, dtype=torch.float32), cloud(1, 25, 2, dtype=torch.float32) + 0.3
    expected = (x.mean(0) - y.mean(0)).double().square().sum() / 2  # in the limit, means only
    got = kd.sinkhorn_divergence(x, y, tau, tol=1e-5)
    assert float(got) == pytest.approx(float(expected), rel=1e-3)
