"""What no choice of numbering, origin, unit or multiplicity may change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import keodrift as kd

F64 = torch.float64
ATOL = 1e-8  # converged solves stop at 1e-11; on these mild problems they amplify it < 1000 times

DRIFTS = {
    "one-sided": lambda tau, **o: kd.OneSidedDrift(tau, **o),
    "split": lambda tau, **o: kd.TwoSidedDrift(tau, **o),
    "joint": lambda tau, **o: kd.TwoSidedDrift(tau, form="joint", **o),
    "sinkhorn T=7": lambda tau, **o: kd.SinkhornDrift(tau, half_steps=7, **o),
    "sinkhorn": lambda tau, **o: kd.SinkhornDrift(tau, tol=1e-11, **o),
}
every_drift = pytest.mark.parametrize("make", DRIFTS.values(), ids=DRIFTS)
every_cost = pytest.mark.parametrize("cost", ["half_squared", "squared", "euclidean"])


@st.composite
def problems(draw):
    """Two weighted clouds of a few points of order 1, and a temperature of order 1."""
    n, m, d = draw(st.integers(2, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def points(k):
        return torch.randn(k, d, generator=generator, dtype=F64)

    def weights(k):
        return 0.2 + torch.rand(k, generator=generator, dtype=F64)

    tau = draw(st.floats(0.4, 5.0))
    return points(n), points(m) + 0.5, weights(n), weights(m), tau, generator


def agree(got, expected, size=1.0):
    torch.testing.assert_close(got, expected, rtol=0, atol=ATOL * size)


@every_drift
@every_cost
@given(problem=problems())
def test_numbering_does_not_matter(make, cost, problem):
    x, y, a, b, tau, generator = problem
    i, j = (torch.randperm(len(c), generator=generator) for c in (x, y))
    drift = make(tau, cost=cost)
    v = drift(x, y, x_weights=a, y_weights=b)
    agree(drift(x[i], y[j], x_weights=a[i], y_weights=b[j]), v[i])


@every_drift
@every_cost
@given(problem=problems(), reach=st.sampled_from([1.0, 1e3]))
def test_the_origin_does_not_matter(make, cost, problem, reach):
    x, y, a, b, tau, generator = problem
    shift = reach * torch.randn(x.shape[-1], generator=generator, dtype=F64)
    drift = make(tau, cost=cost)
    v = drift(x, y, x_weights=a, y_weights=b)
    agree(drift(x + shift, y + shift, x_weights=a, y_weights=b), v)


@every_drift
@every_cost
@given(problem=problems())
def test_orientation_does_not_matter(make, cost, problem):
    x, y, a, b, tau, generator = problem
    d = x.shape[-1]
    rotation, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64))
    drift = make(tau, cost=cost)
    v = drift(x, y, x_weights=a, y_weights=b)
    agree(drift(x @ rotation, y @ rotation, x_weights=a, y_weights=b), v @ rotation)


@every_drift
@every_cost
@given(problem=problems(), c=st.sampled_from([1e-3, 0.3, 7.0, 1e3]))
def test_the_unit_of_length_does_not_matter(make, cost, problem, c):
    x, y, a, b, tau, _ = problem
    v = make(tau, cost=cost)(x, y, x_weights=a, y_weights=b)
    scaled = tau * (c if cost == "euclidean" else c**2)
    agree(make(scaled, cost=cost)(c * x, c * y, x_weights=a, y_weights=b), c * v, c)


@every_drift
@given(problem=problems())
def test_squared_is_half_squared_at_half_the_temperature(make, problem):
    x, y, a, b, tau, _ = problem
    v = make(tau)(x, y, x_weights=a, y_weights=b)
    agree(make(2 * tau, cost="squared")(x, y, x_weights=a, y_weights=b), v)


@every_drift
@every_cost
@given(problem=problems(), c=st.sampled_from([1e-6, 3.0, 1e6]))
def test_the_unit_of_weights_does_not_matter(make, cost, problem, c):
    x, y, a, b, tau, _ = problem
    drift = make(tau, cost=cost)
    v = drift(x, y, x_weights=a, y_weights=b)
    agree(drift(x, y, x_weights=c * a, y_weights=c * b), v)


# The joint form counts points, as its source does, so it tells one point from two half ones.
@pytest.mark.parametrize(
    "make", [m for k, m in DRIFTS.items() if k != "joint"], ids=[k for k in DRIFTS if k != "joint"]
)
@every_cost
@given(problem=problems())
def test_a_doubled_point_is_a_doubled_weight(make, cost, problem):
    x, y, a, b, tau, _ = problem
    drift = make(tau, cost=cost, mask_self=False)  # a twin is not masked, so neither is the self
    heavy_a, heavy_b = a.clone(), b.clone()
    heavy_a[0], heavy_b[-1] = 2 * a[0], 2 * b[-1]
    v = drift(x, y, x_weights=heavy_a, y_weights=heavy_b)
    twice = drift(
        torch.cat([x, x[:1]]),
        torch.cat([y, y[-1:]]),
        x_weights=torch.cat([a, a[:1]]),
        y_weights=torch.cat([b, b[-1:]]),
    )
    agree(twice, torch.cat([v, v[:1]]))


@every_drift
@every_cost
@given(problem=problems())
def test_equal_clouds_are_at_rest(make, cost, problem):
    x, _, a, _, tau, generator = problem
    i = torch.randperm(len(x), generator=generator)
    v = make(tau, cost=cost, mask_self=False)(x, x[i], x_weights=a, y_weights=a[i])
    agree(v, torch.zeros_like(v))


@every_cost
@given(problem=problems())
def test_converged_sinkhorn_is_at_rest_only_where_clouds_agree(cost, problem):
    x, y, a, b, tau, _ = problem
    v = kd.SinkhornDrift(tau, cost=cost, tol=1e-11, velocity="gradient")(
        x, y, x_weights=a, y_weights=b
    )
    assert float(v.norm()) > 100 * ATOL


@every_drift
@given(problem=problems())
def test_the_drift_at_particles_is_the_field_there(make, problem):
    if getattr(make(1.0), "form", None) == "joint":
        return  # a query is a row more of the joint coupling, and no row of the fit
    x, y, a, b, tau, _ = problem
    field = make(tau, mask_self=False).fit(x, y, x_weights=a, y_weights=b)
    agree(field(), field(x.clone()))
