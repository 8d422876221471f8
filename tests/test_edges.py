"""Edge cases: single points, coinciding points, extreme temperatures, clouds far apart."""

from __future__ import annotations

import pytest
import reference as ref
import torch

import keodrift as kd

F32, F64 = torch.float32, torch.float64
DRIFTS = {
    "one-sided": (lambda tau, **o: kd.OneSidedDrift(tau, **o), ref.one_sided, True),
    "split": (lambda tau, **o: kd.TwoSidedDrift(tau, **o), ref.two_sided, True),
    "joint": (lambda tau, **o: kd.TwoSidedDrift(tau, form="joint", **o), ref.joint, True),
    "sinkhorn T=21": (
        lambda tau, **o: kd.SinkhornDrift(tau, half_steps=21, **o),
        lambda p, **o: ref.sinkhorn(p, 21, **o),
        False,
    ),
    "sinkhorn": (lambda tau, **o: kd.SinkhornDrift(tau, tol=1e-5, **o), ref.sinkhorn, False),
}


def rounding(drift):
    """Of float64 on logits of order 10; a solve to 1e-5 amplifies that less than a hundredfold."""
    solved = isinstance(drift, kd.SinkhornDrift) and drift.half_steps is None
    return 1e-3 if solved else 1e-12


every_drift = pytest.mark.parametrize(("make", "reference", "masks"), DRIFTS.values(), ids=DRIFTS)
every_cost = pytest.mark.parametrize("cost", ["half_squared", "squared", "euclidean"])
every_velocity = pytest.mark.parametrize("velocity", ["barycentric", "gradient"])
every_engine = pytest.mark.parametrize("backend", ["dense", "tiled"])


@every_drift
@every_cost
@every_velocity
@every_engine
@pytest.mark.parametrize("mask", [False, True], ids=["", "masked"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (5, 1), (2, 1), (1, 2)])
def test_clouds_with_one_point(cloud, make, reference, masks, cost, velocity, backend, mask, n, m):
    if mask and not masks and n == 1:
        return  # no coupling of a particle with nobody
    x, y = cloud(0, n, 2), cloud(1, m, 2) + 1
    p = ref.problem(x, y, 0.7, cost=cost, mask=mask)
    drift = make(0.7, cost=cost, velocity=velocity, mask_self=mask, backend=backend)
    got = drift(x, y)
    if "sinkhorn" in repr(drift).lower() and mask:
        assert torch.isfinite(got).all()
        return  # two masked particles have one coupling, which no half-step can miss
    if reference is ref.joint and mask and n == 1:
        expected = torch.zeros_like(x)  # s⁻ = 0: nobody to be repelled by, and no mass
    else:
        expected = reference(p, velocity=velocity)()
    torch.testing.assert_close(got, expected, rtol=0, atol=rounding(drift))


@every_drift
@every_cost
@every_velocity
@every_engine
def test_a_lone_particle_among_negatives(cloud, make, reference, masks, cost, velocity, backend):
    x, y, u = cloud(0, 1, 2), cloud(1, 4, 2), cloud(2, 3, 2)
    p = ref.problem(x, y, 0.7, cost=cost, u=u, mask=masks)
    drift = make(0.7, cost=cost, velocity=velocity, backend=backend)
    expected = reference(p, velocity=velocity)()
    torch.testing.assert_close(drift(x, y, negatives=u), expected, rtol=0, atol=rounding(drift))


@every_drift
@every_cost
@every_velocity
@every_engine
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_coinciding_points(make, reference, masks, cost, velocity, backend, dtype):
    """All points of each cloud equal: the drift leads straight from one to the other."""
    x = torch.full((6, 3), 0.25, dtype=dtype)
    y = torch.full((9, 3), 2.25, dtype=dtype)
    drift = make(0.5, cost=cost, velocity=velocity, backend=backend)
    got = drift(x, y)
    p = ref.problem(x, y, 0.5, cost=cost, mask=masks)
    expected = reference(p, velocity=velocity)()
    bound = 8 * torch.finfo(dtype).eps * (1 + ref.logit_scale(p)) * 2 * 3**0.5
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=bound)
    rest = drift(x, x.clone())
    torch.testing.assert_close(rest, torch.zeros_like(x), rtol=0, atol=bound)


@every_drift
@every_cost
@every_velocity
@every_engine
def test_duplicates_among_the_particles(cloud, make, reference, masks, cost, velocity, backend):
    """Coinciding particles repel each other by nothing, and nothing turns into NaN."""
    x, y = cloud(0, 5, 2), cloud(1, 6, 2)
    x[3], y[2] = x[1], x[0]
    drift = make(0.6, cost=cost, velocity=velocity, backend=backend)
    expected = reference(ref.problem(x, y, 0.6, cost=cost, mask=masks), velocity=velocity)()
    torch.testing.assert_close(drift(x, y), expected, rtol=0, atol=rounding(drift))


@every_drift
@every_cost
@every_engine
@pytest.mark.parametrize("mask", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("rho", [1e6, 1e12])
def test_at_huge_temperatures_only_the_means_are_seen(
    cloud, make, reference, masks, cost, backend, mask, rho
):
    x, y = cloud(0, 7, 2, dtype=F32), cloud(1, 9, 2, dtype=F32) + 2
    drift = make(rho, cost=cost, mask_self=mask and masks, backend=backend)
    mean, others = y.double().mean(0), x.double().mean(0).expand(7, 2)
    if mask and masks:
        others = (7 * others - x.double()) / 6
    expected = mean - others
    if reference is ref.joint:
        # A = K/√(r_i c_j) with all kernel values 1: r counts the columns, c the particles.
        r, c = (9 + 6, 6) if mask else (9 + 7, 7)
        k = 6 if mask else 7
        expected = 9 / (r * 7) ** 0.5 * k / (r * c) ** 0.5 * expected
    # Beyond rounding, what the first order of −C/τ leaves.
    bound = 32 * torch.finfo(F32).eps * ref.spread(x, y) + 100 / rho
    torch.testing.assert_close(drift(x, y).double(), expected, rtol=0, atol=bound)


@every_engine
@pytest.mark.parametrize("cost", ["half_squared", "euclidean"])
@pytest.mark.parametrize("rho", [1e-6, 1e-8])
def test_at_tiny_temperatures_the_nearest_neighbours_win(cloud, cost, backend, rho):
    """C/τ ~ 1e8 within the clouds, float32 input, against the exact float64 answer."""
    x, y = cloud(0, 9, 2, dtype=F32), cloud(1, 12, 2, dtype=F32)
    tau = rho * ref.mean_cost(x, y, cost)
    for mask in (False, True):
        p = ref.problem(x, y, tau, cost=cost, mask=mask)
        one = kd.OneSidedDrift(tau, cost=cost, mask_self=mask, backend=backend)
        nearest = y[ref.pairs(x, y, cost).argmin(-1)]
        expected = ref.one_sided(p)()
        if not mask:
            torch.testing.assert_close(expected, nearest.double() - x.double(), rtol=0, atol=1e-12)
        bound = 8 * torch.finfo(F32).eps * ref.spread(x, y)
        torch.testing.assert_close(one(x, y).double(), expected, rtol=0, atol=bound)
        for drift in (
            kd.TwoSidedDrift(tau, cost=cost, mask_self=mask, backend=backend),
            kd.SinkhornDrift(tau, cost=cost, half_steps=3, backend=backend),
        ):
            reference = ref.two_sided(p)
            if isinstance(drift, kd.SinkhornDrift):
                reference = ref.sinkhorn(ref.with_mask(p, False), 3)
            got = drift(x, y).double()
            # Half potentials make ties possible; rows without them are exact.
            clear = clear_winners(reference, 64 * torch.finfo(F32).eps * ref.logit_scale(p))
            assert clear.sum() >= 3  # the others are tied by their half potentials
            torch.testing.assert_close(got[clear], reference()[clear], rtol=0, atol=bound)
            assert torch.isfinite(got).all()


def clear_winners(field, gap):
    """Particles whose largest logit leads by more than ``gap`` on both sides."""
    p, clear = field.p, True
    for points, bias, mask in ((p.y, field.data, False), (p.z, field.model, p.mask)):
        top = (ref.log_kernel(p.x, points, p.cost, p.tau, mask) + bias).topk(2).values
        clear = clear & (top[:, 0] - top[:, 1] > gap + 40)
    return clear


@every_engine
@pytest.mark.parametrize("name", DRIFTS)
@pytest.mark.parametrize("cost", ["half_squared", "squared"])
def test_clouds_far_apart(cloud, name, cost, backend):
    """C/τ ~ 1e8 between the clouds, in float32: the answer of float64, to output rounding."""
    make, reference, masks = DRIFTS[name]
    x, y = cloud(0, 15, 2, dtype=F32), cloud(1, 18, 2, dtype=F32)
    y = y + torch.tensor([8192.0, -4096.0])
    factor = 1.0 if cost == "half_squared" else 2.0
    tau = factor  # a power of two, so that working coordinates are exact
    p = ref.problem(x, y, tau, cost=cost, mask=masks)
    assert ref.logit_scale(p) > 4e7
    got = make(tau, cost=cost, backend=backend)(x, y).double()
    if reference is ref.joint:  # s⁺ underflows: nothing of the data is in reach
        torch.testing.assert_close(got, torch.zeros_like(got), rtol=0, atol=1e-30)
        return
    expected = reference(p)()
    gap = float(torch.tensor([8192.0, 4096.0]).norm())
    # One rounding of the linear term gap·(y − ȳ)/τ in each logit, times the spread of y; and
    # one of the result itself. A naive float32 logit would be off by eps · 4e7 ≈ 5.
    bound = 4 * torch.finfo(F32).eps * gap * (1 + ref.spread(y))
    torch.testing.assert_close(got, expected, rtol=0, atol=bound)


@every_cost
@every_engine
@pytest.mark.parametrize("tau", [1e-25, 1e30])
def test_the_range_of_single_precision_is_not_used_up(cloud, cost, backend, tau):
    """Lengths in units of τ, squared, leave float32; C/τ does not."""
    x, y = cloud(0, 7, 2, dtype=F32), cloud(1, 9, 2, dtype=F32)
    drift = kd.OneSidedDrift(tau, cost=cost, backend=backend)
    bound = 8 * torch.finfo(F32).eps * ref.spread(x, y)
    torch.testing.assert_close(
        drift(x, y).double(), drift(x.double(), y.double()), rtol=0, atol=bound
    )


@every_drift
def test_huge_and_tiny_coordinates(cloud, make, reference, masks):
    """Units in which squares overflow or underflow float32 when τ follows them."""
    x, y = cloud(0, 6, 2, dtype=F32), cloud(1, 8, 2, dtype=F32)
    v = make(0.5)(x, y)
    for c in (2.0**-40, 2.0**40):
        scaled = make(0.5 * c**2)(c * x, c * y)
        torch.testing.assert_close(scaled / c, v, rtol=0, atol=1e-5)


@every_drift
@every_engine
def test_one_dimension_and_many(cloud, make, reference, masks, backend):
    for d in (1, 200):
        x, y = cloud(0, 6, d), cloud(1, 8, d)
        tau = 0.5 * ref.mean_cost(x, y, "half_squared")
        drift = make(tau, backend=backend)
        expected = reference(ref.problem(x, y, tau, mask=masks))()
        torch.testing.assert_close(drift(x, y), expected, rtol=0, atol=rounding(drift))


@every_drift
def test_weights_over_many_orders_of_magnitude(cloud, make, reference, masks):
    x, y = cloud(0, 6, 2), cloud(1, 8, 2)
    a = torch.logspace(-30, 0, 6, dtype=F64)
    b = torch.logspace(0, -200, 8, dtype=F64)
    drift = make(0.5)
    got = drift(x, y, x_weights=a, y_weights=b)
    expected = reference(ref.problem(x, y, 0.5, a=a, b=b, mask=masks))()
    # The masses of the joint field, here hundreds, scale its roundings.
    bound = rounding(drift) * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got, expected, rtol=0, atol=bound)


@every_drift
def test_layouts_of_memory_do_not_matter(cloud, make, reference, masks):
    x, y = cloud(0, 2, 6).T, cloud(1, 16, 2)[::2]
    assert not x.is_contiguous() and not y.is_contiguous()
    drift = make(0.5)
    torch.testing.assert_close(drift(x, y), drift(x.contiguous(), y.contiguous()))
    wide = cloud(0, 1, 6, 2).expand(3, 6, 2)
    torch.testing.assert_close(
        drift(wide, cloud(1, 3, 8, 2)), drift(wide.clone(), cloud(1, 3, 8, 2))
    )


@every_engine
@pytest.mark.parametrize("floor", [None, 1e-3])
@pytest.mark.parametrize("tau", [1e-10, 0.02, 1.0])
def test_the_joint_field_is_bounded_everywhere(cloud, backend, floor, tau):
    """At far queries, at particles of little or no weight, and where float32 has no digits left."""
    x, y = cloud(0, 9, 2, dtype=F32), cloud(1, 12, 2, dtype=F32) + 3
    a = cloud(3, 9).exp()
    a[0], a[1], a[2] = 0, 1e-300, 1e100
    drift = kd.TwoSidedDrift(tau, form="joint", floor=floor, backend=backend)
    negatives = {"negatives": x[:3], "negative_weights": torch.tensor([1e100, 1.0, 0.0], dtype=F64)}
    for options in ({}, {"x_weights": a}, negatives):
        field = drift.fit(x, y, **options)
        queries = torch.cat([y, x, 1e3 * y, torch.zeros(1, 2)])
        for v in (field(), field(queries)):
            assert torch.isfinite(v).all()
    # Without extreme weights a row of A has no pair above 1: s± are at most the counts.
    v = drift.fit(x, y)(torch.cat([y, x]))
    assert float(v.norm(dim=-1).max()) <= 12 * 9 * ref.spread(x, y)


@every_drift
def test_half_precision_saturates(make, reference, masks):
    x = torch.tensor([[-60_000.0], [-50_000.0]], dtype=torch.float16)
    v = make(1e9)(x, -x)
    assert torch.isfinite(v).all() and v.dtype == torch.float16


def test_steep_distances_have_finite_gradients(cloud):
    x, y = 1e-13 * cloud(0, 6, 2, dtype=F32), 1e-13 * cloud(1, 7, 2, dtype=F32)
    v = kd.OneSidedDrift(1e-27, cost="euclidean", velocity="gradient")(x, y)
    exact = kd.OneSidedDrift(1e-27, cost="euclidean", velocity="gradient")(x.double(), y.double())
    torch.testing.assert_close(v.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tau", [0.01, 0.1])
@pytest.mark.parametrize("make", [kd.OneSidedDrift, kd.SinkhornDrift])
@pytest.mark.parametrize("where", ["padded", "far", "most"])
def test_points_that_do_not_count_cost_no_digits(cloud, make, tau, where):
    """Padding at 0 of clouds that lie far from it, and weightless points far from the clouds."""
    offset, dead, place = {"padded": (300, 40, 0), "far": (0, 1, 1e6), "most": (0, 70, 1e6)}[where]
    x, y = (cloud(s, 100, 2, dtype=torch.float32) + offset for s in (0, 1))
    weights = (torch.arange(100) >= dead).float()
    x = x[dead:].clone()
    y[:dead] = place
    drift = make(tau)
    field = drift.fit(x, y, y_weights=weights)
    expected = drift(x.double(), y[dead:].double())
    error = (field() - expected).norm() / expected.norm()
    assert float(error) < (1e-4 if make is kd.OneSidedDrift else 2e-2)
    for coupling in field.couplings:
        assert bool(coupling.converged) and coupling.half_steps <= 25


def test_a_stray_particle_costs_the_others_no_digits(cloud):
    x, y = cloud(0, 50, 2, dtype=torch.float32), cloud(1, 100, 2, dtype=torch.float32)
    x[0] = 1e6
    drift = kd.OneSidedDrift(0.01)
    expected = drift(x.double(), y.double())[1:]
    assert float((drift(x, y)[1:] - expected).norm() / expected.norm()) < 1e-5
