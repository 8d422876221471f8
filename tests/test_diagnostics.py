"""Diagnostics: slopes beside known ones, shares beside dense softmaxes, and each verdict alone."""

from __future__ import annotations

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.diagnostics.shares import self_interaction, unclaimed
from keodrift.errors import ArgumentError, ShapeError
from keodrift.reach import mode_gap

F64 = torch.float64


@pytest.mark.parametrize("batch", [(), (3,)])
def test_slopes_of_an_affine_field(cloud, batch):
    z, matrix = cloud(0, *batch, 5, 3), cloud(1, 3, 3)
    slopes = kd.jacobian(lambda z: z @ matrix.T + 1, z)
    torch.testing.assert_close(slopes, matrix.expand(*batch, 5, 3, 3))
    trace = matrix.trace().expand(*batch, 5)
    torch.testing.assert_close(kd.expansion(lambda z: z @ matrix.T, z), trace)
    relative = (matrix - matrix.T).norm() / (matrix + matrix.T).norm()
    torch.testing.assert_close(kd.curl(lambda z: z @ matrix.T, z), relative.expand(*batch, 5))


def test_many_points_are_taken_some_at_a_time(cloud):
    x, y, z = cloud(0, 20, 2), cloud(1, 30, 2) + 1, cloud(2, 600, 2)
    seen = []

    def field(z):
        seen.append(len(z))
        return fitted(z)

    fitted = kd.OneSidedDrift(0.5).fit(x, y)
    whole = kd.jacobian(field, z)
    assert sum(seen) == 600 and max(seen) <= 256
    torch.testing.assert_close(whole[-5:], kd.jacobian(fitted, z[-5:]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("cost", ["half_squared", "euclidean"])
def test_jacobian_of_a_field_is_its_difference_quotient(cloud, backend, cost):
    x, y, z = cloud(0, 20, 2), cloud(1, 30, 2) + 1, cloud(2, 6, 2)
    field = kd.TwoSidedDrift(0.7, form="joint", cost=cost, backend=backend).fit(x, y)
    step = 1e-5 * torch.eye(2, dtype=F64)
    columns = [(field(z + e) - field(z - e)) / 2e-5 for e in step]
    torch.testing.assert_close(
        kd.jacobian(field, z), torch.stack(columns, -1), rtol=1e-6, atol=1e-8
    )


def test_which_fields_are_gradients(cloud):
    x, y, z = cloud(0, 20, 2), cloud(1, 30, 2) + 1, cloud(2, 12, 2)
    for drift in (kd.SinkhornDrift(0.5, tol=1e-10), kd.OneSidedDrift(0.5), kd.TwoSidedDrift(0.5)):
        assert float(kd.curl(drift.fit(x, y), z).max()) < 1e-10
    sharp = kd.OneSidedDrift(0.5, cost="euclidean", velocity="gradient")
    assert float(kd.curl(sharp.fit(x, y), z).max()) < 1e-10
    for drift in (
        kd.OneSidedDrift(0.5, cost="euclidean"),
        kd.TwoSidedDrift(0.5, form="joint"),
    ):
        assert float(kd.curl(drift.fit(x, y), z).median()) > 1e-3


def test_slopes_leave_modes_alone_and_take_constants(cloud):
    z = cloud(0, 4, 2)
    with torch.inference_mode():
        still = kd.jacobian(torch.ones_like, z)
        turning = kd.curl(lambda z: torch.stack([z[:, 1], -z[:, 0]], -1), z)
        assert torch.is_inference_mode_enabled()
    assert not still.any() and turning.isinf().all() and not turning.requires_grad
    assert not kd.curl(torch.ones_like, z).any()
    with pytest.raises(ShapeError, match="^field"):
        kd.jacobian(lambda z: z.sum(-1), z)


@pytest.mark.parametrize("cost", ["half_squared", "euclidean", ref.lopsided])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_self_share_is_the_diagonal_of_the_softmax(cloud, cost, dtype):
    x, y = cloud(0, 20, 2, dtype=dtype), cloud(1, 30, 2, dtype=dtype)
    name = cost if isinstance(cost, str) else "lopsided"
    for tau in (0.01, 1.0):
        field = kd.TwoSidedDrift(tau, cost=cost, mask_self=False).fit(x, y)
        rows = ref.softmax(field.model.bias - ref.pairs(x, x, name) / tau)
        slack = 1e-12 if dtype == F64 else 1e-4
        torch.testing.assert_close(kd.self_share(field), rows.diagonal(), rtol=slack, atol=slack)
    assert not kd.self_share(kd.OneSidedDrift(0.1).fit(x, y)).any()  # masked
    others = kd.SinkhornDrift(0.1, half_steps=3).fit(x, y, model=y)
    assert not kd.self_share(others).any()


def test_self_share_of_a_batch_under_a_cost_that_holds_a_tensor(cloud):
    x, y, w = cloud(0, 3, 20, 2), cloud(1, 3, 30, 2), torch.tensor([1.0, 3.0], dtype=F64)
    cost = kd.Cost("w", lambda x, y, w: (w * (x - y).abs()).sum(-1), parameters={"w": w})
    field = kd.OneSidedDrift(0.1, cost=cost, relative=True, mask_self=False).fit(x, y)
    rows = (field.model.bias[:, None] - cost.pairs(x, x) / field.model.taus[..., None]).softmax(-1)
    torch.testing.assert_close(kd.self_share(field), rows.diagonal(dim1=-2, dim2=-1))


def test_pull_of_particles_on_themselves_is_what_a_mask_takes_away(cloud):
    x, y = cloud(0, 20, 2), cloud(1, 30, 2)
    bare, masked = (kd.OneSidedDrift(0.1, mask_self=mask)(x, y) for mask in (False, True))
    expected = (bare - masked).square().mean().sqrt() / bare.square().mean().sqrt()
    report = kd.diagnose(kd.OneSidedDrift(0.1, mask_self=False), x, y)
    assert report.self_bias == pytest.approx(float(expected), rel=1e-10)
    assert kd.diagnose(kd.OneSidedDrift(0.1), x, y).self_bias == 0


def test_unclaimed_mass_is_the_error_of_the_column_marginal(cloud):
    x, y = cloud(0, 20, 2), cloud(1, 30, 2)
    field = kd.OneSidedDrift(0.1).fit(x, y)
    rows = ref.softmax(field.data.bias - ref.pairs(x, y, "half_squared") / 0.1)
    expected = (rows.mean(0) - 1 / 30).abs().sum() / 2
    assert float(unclaimed(field)) == pytest.approx(float(expected), rel=1e-12)
    assert float(unclaimed(kd.SinkhornDrift(0.1, tol=1e-8).fit(x, y))) <= 1e-8


def test_a_gap_lies_between_parts_that_count(cloud):
    y = 0.1 * cloud(0, 200, 2)
    outlier = torch.cat([y, torch.full((1, 2), 9.0, dtype=F64)])
    assert mode_gap(outlier) < 0.05 and mode_gap(torch.zeros(3, 2)) == 0
    y[:50, 0] += 4
    between = ref.pairs(y[:50], y[50:], "squared").min()
    assert mode_gap(y, cost="squared") == pytest.approx(float(between))


def modes(share: float, n: int, seed: int) -> torch.Tensor:
    points = 0.2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
    points[: round(share * n), 0] += 4
    return points


FAR_X, FAR_Y = modes(0.9, 200, 0), modes(0.5, 200, 1)


SELVES = "pull of particles on themselves"


def failing(report: kd.Diagnosis) -> list[str]:
    return [verdict.name for verdict in report.verdicts if not verdict.passed]


def test_a_healthy_drift_passes():
    report = kd.diagnose(kd.SinkhornDrift(0.05), FAR_X, FAR_Y)
    assert failing(report) == [] and report.unclaimed <= 1e-3 and report.gap > 4
    assert "LOOK" not in str(report) and "200 particles" in str(report)


@pytest.mark.parametrize(
    ("drift", "names"),
    [
        (kd.OneSidedDrift(0.05), ["mass out of reach"]),
        (kd.TwoSidedDrift(0.05, form="joint"), ["mass out of reach"]),
        # What little drift is left is, besides, mostly what particles do to themselves.
        (kd.SinkhornDrift(0.05, half_steps=41), [SELVES, "mass out of reach", "marginal error"]),
        (kd.SinkhornDrift(0.05, reach=0.5), [SELVES, "mass out of reach"]),
        (
            kd.SinkhornDrift(1e-4, tol=1e-3, max_half_steps=20_000),
            ["effective neighbours", "mass of a particle on itself"],
        ),
    ],
    ids=["one-sided", "joint", "20 sweeps", "short reach", "cold"],
)
def test_every_failure_has_its_verdict(drift, names):
    report = kd.diagnose(drift, FAR_X, FAR_Y)
    assert failing(report) == names
    assert str(report).count("LOOK") == len(names)
    bars = report.plot().axes[0].patches
    assert sum(bar.get_width() > 0 for bar in bars) == len(names)


def test_a_small_batch_pulls_on_itself_unless_others_repel(cloud):
    x, y, other = cloud(0, 32, 6), cloud(1, 32, 6), cloud(2, 32, 6)
    drift = kd.SinkhornDrift(0.5)
    assert SELVES in failing(kd.diagnose(drift, x, y))
    report = kd.diagnose(drift, x, y, model=other)
    assert report.self_bias == 0 and report.self_share == 0


def test_what_a_diagnosis_refuses(cloud):
    with pytest.raises(ShapeError, match="^x"):
        kd.diagnose(kd.OneSidedDrift(1.0), cloud(0, 2, 9, 2), cloud(1, 2, 9, 2))
    with pytest.raises(ArgumentError, match="^drift: got SmoothedField"):
        kd.diagnose(kd.KLDrift(1.0, form="flow"), cloud(0, 9, 2), cloud(1, 9, 2))
    for drift in (kd.KLDrift(1.0, form="flow"), kd.MMDDrift(1.0)):
        with pytest.raises(ArgumentError, match="^drift: got"):
            kd.tau_for_neighbours(drift, cloud(0, 9, 2), cloud(1, 9, 2), 3)
    with pytest.raises(ArgumentError, match="^drift: got function"):
        kd.diagnose(lambda x, y: y - x, cloud(0, 9, 2), cloud(1, 9, 2))
    with pytest.raises(ArgumentError, match="^field"):
        kd.self_share(None)


def test_the_sinkhorn_divergence_falls_along_its_flow(cloud):
    x, y = cloud(0, 30, 2), 0.5 * cloud(1, 40, 2) + 2

    def energy(z):
        return kd.sinkhorn_divergence(z, y, 0.5)

    flow = kd.simulate(kd.SinkhornDrift(0.5, tol=1e-6), x, y, 0.2, 20)
    found = kd.dissipation(energy, flow)
    assert float(found.falling) == 1 and float(found.left) < 0.05
    back = kd.dissipation(energy, flow.trajectory.flip(0))
    assert float(back.falling) == 0 and back.values.shape == (21,)
    with pytest.raises(ShapeError, match="^path"):
        kd.dissipation(energy, [x])


def test_particles_beside_a_smaller_model_cloud_share_nothing_by_padding(cloud):
    x = torch.zeros(4, 2, dtype=F64)
    field = kd.SinkhornDrift(0.5).fit(x, cloud(1, 6, 2), model=cloud(2, 2, 2))
    assert kd.self_share(field).tolist() == [0.0] * 4
    same = kd.SinkhornDrift(0.5).fit(x, cloud(1, 6, 2), model=x[:2])
    assert bool((kd.self_share(same)[:2] > 0).all()) and not kd.self_share(same)[2:].any()


def test_slopes_are_those_of_full_precision_under_autocast(cloud):
    x, y = cloud(0, 50, 2, dtype=torch.float32), cloud(1, 50, 2, dtype=torch.float32)
    field = kd.OneSidedDrift(0.5).fit(x, y)
    expected = kd.jacobian(field, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kd.jacobian(field, x), expected)


@pytest.mark.parametrize("floor", [None, 1e-30])
def test_the_pull_of_particles_on_themselves_is_in_the_unit_of_the_drift(cloud, floor):
    """Masses that are the same for both are in the drift, so they are in the pull."""
    x, y = cloud(0, 40, 2), cloud(1, 40, 2)
    unit, scores = (
        kd.diagnose(kd.KLDrift(0.05, masses=masses), x, y) for masses in ("unit", "gradient")
    )
    assert unit.self_bias > 0.1
    assert scores.self_bias == pytest.approx(unit.self_bias)
    joint = kd.TwoSidedDrift(0.05, form="joint", floor=floor, mask_self=False).fit(x, y)
    share, pull = self_interaction(joint)
    logits = joint.model.bias - ref.pairs(x, x, "half_squared") / 0.05
    without = torch.softmax(logits.fill_diagonal_(-torch.inf), -1) @ x
    mass = joint.masses(joint, joint.data.kernel(x), joint.model.kernel(x), True)[1]
    torch.testing.assert_close(pull, (mass * share)[:, None] * (without - x))


def test_in_a_sum_of_kernels_no_point_acts_on_itself(cloud):
    report = kd.diagnose(kd.KALEDrift(0.003), cloud(0, 30, 2), cloud(1, 30, 2))
    assert report.self_bias == 0 and report.self_share == 0
