"""Repulsion by other draws of the model: formulas, classes, and no drift on average at q = p."""

from __future__ import annotations

import math

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.errors import ShapeError, WeightsError

F64 = torch.float64
TAU = 0.8
DRIFTS = {
    "one-sided": (kd.OneSidedDrift(TAU), ref.one_sided),
    "split": (kd.TwoSidedDrift(TAU), ref.two_sided),
    "joint": (kd.TwoSidedDrift(TAU, form="joint"), ref.joint),
    "floored": (
        kd.TwoSidedDrift(TAU, form="joint", floor=0.05),
        lambda p: ref.joint(p, floor=0.05),
    ),
    "5 half-steps": (kd.SinkhornDrift(TAU, half_steps=5), lambda p: ref.sinkhorn(p, 5)),
    "converged": (kd.SinkhornDrift(TAU, tol=1e-10), ref.sinkhorn),
}
every_drift = pytest.mark.parametrize(("drift", "expected"), DRIFTS.values(), ids=DRIFTS)


@every_drift
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "weights and negatives"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["", "batch"])
def test_the_model_cloud_repels_in_the_particles_place(cloud, drift, expected, extras, batch):
    x, y, model = cloud(0, *batch, 9, 2), cloud(1, *batch, 12, 2) + 1, cloud(2, *batch, 14, 2)
    u, w, m = cloud(3, *batch, 4, 2), cloud(4, *batch, 4).exp(), cloud(5, *batch, 14).exp()
    m[..., 3] = 0
    given = {"negatives": u, "negative_weights": w, "model_weights": m} if extras else {}
    theirs = {"u": u, "w": w, "m": m} if extras else {}
    field = drift.fit(x, y, model=model, **given)
    reference = expected(ref.problem(x, y, TAU, model=model, **theirs))
    torch.testing.assert_close(field(), reference(), rtol=1e-7, atol=1e-8)
    z = cloud(6, *batch, 5, 2)
    torch.testing.assert_close(field(z), reference(z), rtol=1e-7, atol=1e-8)


@every_drift
def test_the_particles_as_model_cloud_are_the_field_without_mask(cloud, drift, expected):
    x, y = cloud(0, 9, 2), cloud(1, 12, 2)
    theirs = expected(ref.problem(x, y, TAU, mask=False))()
    torch.testing.assert_close(drift(x, y, model=x), theirs, rtol=1e-7, atol=1e-8)


@every_drift
def test_every_class_is_repelled_by_its_own_draws(cloud, drift, expected):
    x, y, model, u = cloud(0, 12, 2), cloud(1, 15, 2), cloud(2, 18, 2), cloud(3, 3, 2)
    labels = {name: torch.arange(n) % 3 for name, n in (("x", 12), ("y", 15), ("model", 18))}
    found = drift(x, y, model=model, negatives=u, **{f"{k}_labels": v for k, v in labels.items()})
    for k in range(3):
        own = [z[labels[name] == k] for name, z in (("x", x), ("y", y), ("model", model))]
        alone = drift(*own[:2], model=own[2], negatives=u)
        torch.testing.assert_close(found[labels["x"] == k], alone, rtol=1e-9, atol=1e-9)


def test_a_field_of_redrawn_models_can_be_started(cloud):
    x, y, drift = cloud(0, 300, 2), cloud(1, 300, 2), kd.SinkhornDrift(TAU, tol=1e-9)
    first = drift.fit(x, y, model=cloud(2, 300, 2))
    moved, model = x + 1e-3, cloud(3, 300, 2)
    torch.testing.assert_close(
        drift(moved, y, model=model, start=first), drift(moved, y, model=model), atol=1e-7, rtol=0
    )


def test_the_loss_moves_particles_by_the_drift_of_the_model_cloud(cloud):
    x, y, model = cloud(0, 6, 2).requires_grad_(), cloud(1, 8, 2), cloud(2, 8, 2)
    drift = kd.SinkhornDrift(TAU)
    kd.drift_loss(x, y, drift, model=model).backward()
    torch.testing.assert_close(x.grad, -drift(x.detach(), y, model=model) / 6)


@pytest.mark.parametrize("labelled", [False, True])
def test_scaled_features_scale_the_model_cloud(cloud, labelled):
    x, y, model = cloud(0, 6, 2), cloud(1, 8, 2), cloud(2, 8, 2)
    labels = {f"{k}_labels": torch.arange(n) % 2 for k, n in (("x", 6), ("y", 8), ("model", 8))}
    labels = labels if labelled else {}
    losses = []
    for unit in (1.0, 1e3):
        free = (unit * x).requires_grad_()
        how = {"model": unit * model, "scale_features": True, **labels}
        losses.append(kd.drift_loss(free, unit * y, kd.SinkhornDrift(TAU), **how))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)


def test_what_is_no_model_cloud_is_refused(cloud):
    x, y, drift = cloud(0, 6, 2), cloud(1, 8, 2), kd.SinkhornDrift(TAU)
    labels = {"x_labels": torch.zeros(6).long(), "y_labels": torch.zeros(8).long()}
    with pytest.raises(ShapeError, match="model_weights: got weights without points"):
        drift(x, y, model_weights=torch.ones(6))
    with pytest.raises(ShapeError, match="model_labels"):
        drift(x, y, model=x, **labels)
    with pytest.raises(ShapeError, match="model_labels.*no model points for the classes"):
        drift(x, y, model=x, model_labels=torch.ones(6).long(), **labels)
    with pytest.raises(WeightsError, match="model_weights"):
        drift(x, y, model=x, model_weights=torch.zeros(6))
    with pytest.raises(ShapeError, match="model"):
        drift(x, y, model=cloud(2, 6, 3))


# At q = p the field of a batch is 0 on average if and only if x′ repels, other draws as many as
# the data: then T(x→y) and T(x→x′) have one law.

MEAN = {
    "one-sided": kd.OneSidedDrift(0.2),
    "split": kd.TwoSidedDrift(0.2),
    "joint": kd.TwoSidedDrift(0.2, form="joint"),
    "1 sweep": kd.SinkhornDrift(0.2, half_steps=3),
    "20 sweeps": kd.SinkhornDrift(0.2, half_steps=41),
    "converged": kd.SinkhornDrift(0.2, tol=1e-3),
    "relaxed": kd.SinkhornDrift(0.2, reach=0.5),
    "relaxed, truncated": kd.SinkhornDrift(0.2, reach=0.5, half_steps=5),
    "relaxed, row masses": kd.SinkhornDrift(0.2, reach=0.5, masses="gradient"),
}


def radial_drift(drift, n, repeats, negatives):
    """Mean over batches of Σ⟨x, V⟩/Σ⟨x, x⟩ in 3 dimensions, and its standard error."""
    generator = torch.Generator().manual_seed(n)
    x, y, model = (torch.randn(repeats, n, 3, generator=generator) for _ in range(3))
    v = drift(x, y, model=model) if negatives == "fresh" else drift(x, y)
    ratios = (x * v).sum((-1, -2)) / x.square().sum((-1, -2))
    return float(ratios.mean()), float(ratios.std()) / math.sqrt(repeats)


@pytest.mark.parametrize("n", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("drift", MEAN.values(), ids=MEAN)
def test_fresh_negatives_leave_no_drift_at_equal_laws(drift, n):
    mean, error = radial_drift(drift, n, 6400 // n, "fresh")
    assert abs(mean) < 4 * error


@pytest.mark.parametrize("drift", [kd.SinkhornDrift(0.2, half_steps=41), MEAN["converged"]])
def test_particles_that_repel_themselves_contract(drift):
    mean, error = radial_drift(drift, 32, 200, "self")
    assert mean < -20 * error
