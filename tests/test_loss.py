"""The regression: weights, scales by problem and class, half precision."""

from __future__ import annotations

import math

import pytest
import torch

import keodrift as kd
from keodrift.errors import ArgumentError, ShapeError
from keodrift.loss import feature_scale

DRIFTS = {
    "one-sided": kd.OneSidedDrift(0.5),
    "joint": kd.TwoSidedDrift(0.5, form="joint"),
    "sinkhorn": kd.SinkhornDrift(0.5, tol=1e-6),
}
every_drift = pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS)


@every_drift
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=["", "batch"])
def test_the_gradient_is_minus_the_weighted_drift(cloud, drift, batch):
    x, y, a = cloud(0, *batch, 6, 2), cloud(1, *batch, 8, 2), cloud(2, *batch, 6).exp()
    a[..., 2] = 0
    free = x.clone().requires_grad_()
    kd.drift_loss(free, y, drift, x_weights=a).backward()
    share = a / a.sum(-1, keepdim=True) / max(1, math.prod(batch))
    torch.testing.assert_close(free.grad, -share[..., None] * drift(x, y, x_weights=a))
    assert bool((free.grad[..., 2, :] == 0).all())  # a particle without weight stays
    uniform = x.clone().requires_grad_()
    kd.drift_loss(uniform, y, drift).backward()
    n = 6 * max(1, math.prod(batch))
    torch.testing.assert_close(uniform.grad, -drift(x, y) / n)


def test_a_normalised_field_moves_the_weighted_cloud_by_one(cloud):
    x, y, a = cloud(0, 9, 3).requires_grad_(), cloud(1, 8, 3) + 4, cloud(2, 9).exp()
    loss = kd.drift_loss(x, y, DRIFTS["one-sided"], x_weights=a, normalize=True)
    # ½ E‖V‖² with E of a coordinate's square 1, so half the dimension.
    assert float(loss) == pytest.approx(1.5, rel=1e-6)


def test_the_scale_sees_data_and_negatives(cloud):
    x, y, u = cloud(0, 5, 3), cloud(1, 7, 3), 4 * cloud(2, 6, 3)
    mean = torch.cdist(x, torch.cat([y, u])).mean()
    assert float(feature_scale(x, y, u)) == pytest.approx(float(mean) / 3**0.5)
    free = x.clone().requires_grad_()
    drift = kd.SinkhornDrift(1.0, tol=1e-8)
    kd.drift_loss(free, y, drift, negatives=u, scale_features=True).backward()
    s = float(mean) / 3**0.5
    expected = -drift(x / s, y / s, negatives=u / s) / s / 5
    torch.testing.assert_close(free.grad, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("negatives", ["none", "labelled", "shared"])
def test_every_class_has_its_own_scale(cloud, negatives):
    x, y, u = cloud(0, 8, 2), cloud(1, 10, 2), cloud(2, 6, 2)
    x_labels, y_labels, u_labels = ((torch.arange(n) % 3 > 0).long() for n in (8, 10, 6))
    for points, labels in ((x, x_labels), (y, y_labels), (u, u_labels)):
        points[labels == 1] *= 20
    options, theirs = {"x_labels": x_labels, "y_labels": y_labels}, {}
    if negatives != "none":
        options["negatives"] = u
    if negatives == "labelled":
        options["negative_labels"] = u_labels
    drift = kd.OneSidedDrift(0.3)
    free = x.clone().requires_grad_()
    kd.drift_loss(free, y, drift, scale_features=True, **options).backward()
    for k in (0, 1):
        i, j = x_labels == k, y_labels == k
        if negatives != "none":
            theirs = {"negatives": u if negatives == "shared" else u[u_labels == k]}
        part = x[i].clone().requires_grad_()
        kd.drift_loss(part, y[j], drift, scale_features=True, **theirs).backward()
        torch.testing.assert_close(free.grad[i], part.grad * len(part) / 8, rtol=1e-6, atol=1e-12)


def test_large_classes_are_picked_from_as_if_alone(cloud):
    """More points than the mean distance runs over, in classes of unequal size."""
    x, y, drift = cloud(0, 6000, 2), cloud(1, 12, 2), lambda x, y, **_: torch.ones_like(x)
    labels = {"x_labels": (torch.arange(6000) % 3 > 0).long(), "y_labels": torch.arange(12) % 2}
    free = x.clone().requires_grad_()
    kd.drift_loss(free, y, drift, scale_features=True, **labels).backward()
    for k in (0, 1):
        own = labels["x_labels"] == k
        size = feature_scale(x[own], y[labels["y_labels"] == k])
        expected = (-1 / size / 6000).expand(int(own.sum()), 2)
        torch.testing.assert_close(free.grad[own], expected, rtol=1e-9, atol=0)


@every_drift
def test_negatives_without_labels_are_shared_by_all_classes(cloud, drift):
    x, y, u, w = cloud(0, 6, 2), cloud(1, 8, 2), cloud(2, 3, 2), cloud(3, 3).exp()
    labels = {"x_labels": torch.arange(6) % 2, "y_labels": torch.arange(8) % 2}
    got = drift(x, y, negatives=u, negative_weights=w, **labels)
    for k in (0, 1):
        alone = drift(x[k::2], y[k::2], negatives=u, negative_weights=w)
        torch.testing.assert_close(got[k::2], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_do_not_overflow_half_precision(dtype):
    x = torch.zeros(4, 2, dtype=dtype).requires_grad_()
    loss = kd.drift_loss(x, torch.full((4, 2), 400.0, dtype=dtype), kd.OneSidedDrift(1.0))
    loss.backward()
    assert loss.dtype == torch.float32 and float(loss) == 160_000
    assert x.grad.dtype == dtype and torch.equal(x.grad, torch.full_like(x, -100.0))


def test_a_normalised_particle_without_weight_does_not_overflow_half_precision():
    # Its field is 4·10⁶ times that of the rest, by whose root mean square it is divided.
    x = torch.tensor([[0.0], [500.0]], dtype=torch.float16, requires_grad=True)
    y = torch.tensor([[1e-4], [400.0]], dtype=torch.float16)
    drift = kd.OneSidedDrift(100.0, mask_self=False)
    loss = kd.drift_loss(x, y, drift, x_weights=torch.tensor([1.0, 0.0]), normalize=True)
    loss.backward()
    assert loss.item() == pytest.approx(0.5, rel=1e-2)
    assert x.grad.tolist() == [[pytest.approx(-1, rel=1e-2)], [0]]


def test_every_class_and_problem_is_normalised_by_its_own(cloud):
    x, y = cloud(0, 8, 2), cloud(1, 10, 2) + 3
    labels = {"x_labels": torch.arange(8) % 2, "y_labels": torch.arange(10) % 2}
    y[1::2] *= 100  # a class whose field is a hundred times that of the other
    free, drift = x.clone().requires_grad_(), DRIFTS["one-sided"]
    kd.drift_loss(free, y, drift, normalize=True, **labels).backward()
    batch = x.view(4, 2, 2).transpose(0, 1).contiguous().requires_grad_()
    pairs = y.view(5, 2, 2).transpose(0, 1)
    kd.drift_loss(batch, pairs, drift, normalize=True).backward()
    for k in (0, 1):
        part = x[k::2].clone().requires_grad_()
        kd.drift_loss(part, y[k::2], drift, normalize=True).backward()
        torch.testing.assert_close(free.grad[k::2], part.grad / 2)
        torch.testing.assert_close(batch.grad[k], part.grad / 2)


@pytest.mark.parametrize("missing", ["y_labels", "model_labels"])
def test_scaled_features_miss_labels_as_the_drift_does(cloud, missing):
    x, y, labels = cloud(0, 6, 2), cloud(1, 6, 2), torch.arange(6) % 2
    given = {"x_labels": labels, "y_labels": labels, "model": y, "model_labels": labels}
    for scale_features in (False, True):
        inputs = {name: value for name, value in given.items() if name != missing}
        with pytest.raises(ShapeError, match=f"^{missing}: got None"):
            kd.drift_loss(x, y, DRIFTS["one-sided"], scale_features=scale_features, **inputs)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("name", ["y", "negatives", "model"])
def test_points_without_weight_do_not_scale_features(cloud, labelled, name):
    x, clouds = cloud(0, 6, 2), {"y": cloud(1, 7, 2), name: cloud(2, 8, 2)}
    far = clouds | {name: torch.cat([clouds[name], clouds[name] + 50])}
    weights = {f"{name.removesuffix('s')}_weights": torch.cat([torch.ones(8), torch.zeros(8)])}

    def loss(clouds, **weights):
        if labelled:
            for key, z in [("x", x), *clouds.items()]:
                places = torch.arange(len(z)) % (len(z) // 2 if len(z) > 8 else len(z))
                weights |= {f"{key.removesuffix('s')}_labels": places % 2}
        return kd.drift_loss(x, clouds["y"], DRIFTS["one-sided"], scale_features=True,
            **{k: z for k, z in clouds.items() if k != "y"}, **weights)  # fmt: skip

    torch.testing.assert_close(loss(far, **weights), loss(clouds))


@pytest.mark.parametrize("labels", [[0] * 6, torch.zeros(7).long(), torch.zeros(6, 1).long()])
def test_labels_are_checked_before_features_are_scaled(cloud, labels):
    own = {"x_labels": labels, "y_labels": torch.zeros(6).long()}
    with pytest.raises(ArgumentError, match="^x_labels"):
        kd.drift_loss(
            cloud(0, 6, 2), cloud(1, 6, 2), DRIFTS["one-sided"], scale_features=True, **own
        )


@pytest.mark.parametrize("field", [torch.ones(6, 1), torch.ones(2), 0.0], ids=str)
def test_a_field_of_another_shape_is_refused(cloud, field):
    with pytest.raises(ShapeError, match="^drift"):
        kd.drift_loss(cloud(0, 6, 2), cloud(1, 6, 2), lambda x, y: field)
