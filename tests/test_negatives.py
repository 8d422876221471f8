"""Who repels the samples of a training batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import keodrift as kd
from keodrift.errors import OptionError, ShapeError
from keodrift.training import Batch, Objective, Trainer
from keodrift.training.negatives import crossed

DRIFT = kd.SinkhornDrift(0.3, tol=1e-8)


def slopes(x, objective, batch):
    """−N times the gradient of the loss: the drift that moves each sample."""
    free = x.clone().requires_grad_()
    objective(free, batch).backward()
    return -len(x) * free.grad


@pytest.mark.parametrize("n", [8, 9])
def test_crossed_halves_repel_each_other_and_meet_as_many_data_as_repellers(cloud, n):
    x, y = cloud(0, n, 2), cloud(1, n, 2) + 1
    u, w = cloud(2, 3, 2), torch.rand(3, dtype=torch.float64)
    options = {"negatives": u, "negative_weights": w}
    found = slopes(x, Objective(DRIFT, negatives="crossed"), Batch((), y, options))
    h, k = (n + 1) // 2, n // 2
    first = DRIFT(x[:h], y[:k], model=x[h:], **options)
    second = DRIFT(x[h:], y[k:], model=x[:h], **options)
    torch.testing.assert_close(found, torch.cat([first, second]), atol=1e-7, rtol=1e-7)


def test_crossed_halves_are_halves_of_every_class(cloud):
    x, y, u = cloud(0, 14, 2), cloud(1, 14, 2), cloud(2, 4, 2)
    labels = torch.tensor([3, 7] * 5 + [3] * 4)
    own, a = torch.tensor([3, 7, 7, 3]), cloud(3, 14).exp()
    options = {"x_labels": labels, "y_labels": labels, "x_weights": a}
    options |= {"negatives": u, "negative_labels": own}
    found = slopes(x, Objective(DRIFT, negatives="crossed"), Batch((), y, options))
    for k in (3, 7):
        mine = (labels == k).nonzero()[:, 0]
        h, size = (len(mine) + 1) // 2, len(mine)
        halves = (mine[:h], mine[: size // 2], mine[h:]), (mine[h:], mine[size // 2 :], mine[:h])
        for rows, data, others in halves:
            weights = {"x_weights": a[rows], "model_weights": a[others]}
            v = DRIFT(x[rows], y[data], model=x[others], negatives=u[own == k], **weights)
            share = (14 * a / a.sum())[rows, None]
            torch.testing.assert_close(found[rows], share * v, atol=1e-6, rtol=1e-6)


def test_masked_negatives_mask_a_drift_that_does_not(cloud):
    x, y = cloud(0, 8, 2), cloud(1, 8, 2)
    found = slopes(x, Objective(DRIFT, negatives="masked"), Batch((), y))
    expected = kd.SinkhornDrift(0.3, tol=1e-8, mask_self=True)(x, y)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-7)


class Line(nn.Linear):
    noise_dim = 2


def test_fresh_negatives_are_other_draws_of_the_network_without_gradient(cloud):
    network = Line(2, 2).double()
    noise, other, y = cloud(0, 8, 2), cloud(1, 10, 2), cloud(2, 10, 2)
    batch = Batch((noise,), y, model_inputs=(other,))
    expected = DRIFT(network(noise).detach(), y, model=network(other).detach())
    seen = []

    def objective(x, batch):
        assert not batch.options["model"].requires_grad
        seen.append(slopes(x.detach(), Objective(DRIFT, negatives="fresh"), batch))
        return x.square().sum()

    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    Trainer(network, lambda _: batch, objective, optimizer, torch.Generator()).run(1)
    torch.testing.assert_close(seen[0], expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(
    ("negatives", "batch"),
    [
        ("fresh", Batch((), torch.zeros(4, 2))),
        ("self", Batch((), torch.zeros(4, 2), model_inputs=(torch.zeros(4, 2),))),
        ("crossed", Batch((), torch.zeros(4, 2), {"model": torch.zeros(4, 2)})),
        ("masked", Batch((), torch.zeros(4, 2), balanced=True)),
    ],
)
def test_batches_that_do_not_fit_the_negatives_are_refused(negatives, batch):
    with pytest.raises(OptionError, match="^negatives: got"):
        Objective(DRIFT, negatives=negatives)(torch.zeros(4, 2, requires_grad=True), batch)


def test_a_mask_on_balanced_batches_is_refused_with_its_reason():
    batch = Batch((), torch.zeros(4, 2), balanced=True)
    x = torch.zeros(4, 2, requires_grad=True)
    with pytest.raises(OptionError, match="presumes independent points.*expands"):
        Objective(kd.OneSidedDrift(1.0))(x, batch)
    Objective(kd.OneSidedDrift(1.0, mask_self=False))(x, batch)
    Objective(kd.OneSidedDrift(1.0), negatives="crossed")(x, batch)


def test_what_cannot_be_crossed_is_refused(cloud):
    objective = Objective(DRIFT, negatives="crossed")
    x = cloud(0, 5, 2).requires_grad_()
    with pytest.raises(ShapeError, match="of every class as many as samples"):
        objective(x, Batch((), cloud(1, 6, 2)))
    labels = {"x_labels": torch.tensor([0, 0, 0, 0, 1]), "y_labels": torch.tensor([0, 0, 0, 1, 1])}
    with pytest.raises(ShapeError, match="of every class as many as samples"):
        objective(x, Batch((), cloud(1, 5, 2), labels))
    labels["y_labels"] = labels["x_labels"]
    with pytest.raises(ShapeError, match="a class of one sample"):
        objective(x, Batch((), cloud(1, 5, 2), labels))


def test_unknown_negatives_are_refused():
    with pytest.raises(OptionError, match="negatives"):
        Objective(DRIFT, negatives="others")
    with pytest.raises(OptionError, match="softmax drift"):
        Objective(lambda x, y: x, negatives="masked")


@pytest.mark.parametrize(("negatives", "still"), [("crossed", True), ("self", False)])
def test_crossed_negatives_leave_no_drift_at_equal_laws(negatives, still):
    generator = torch.Generator().manual_seed(0)
    objective = Objective(kd.SinkhornDrift(0.2, half_steps=11), negatives=negatives)
    ratios = []
    for _ in range(60):
        x, y = (torch.randn(64, 3, generator=generator) for _ in range(2))
        v = slopes(x, objective, Batch((), y))
        ratios.append(float((x * v).sum() / x.square().sum()))
    mean = sum(ratios) / 60
    error = math.sqrt(sum((r - mean) ** 2 for r in ratios) / 59 / 60)
    assert abs(mean) < 4 * error if still else mean < -8 * error


def test_crossed_classes_of_a_small_kind_of_integer_stay_apart(cloud):
    x, y = cloud(0, 8, 2), cloud(1, 8, 2)
    labels = torch.tensor([0, 128] * 4, dtype=torch.uint8)
    given = crossed(x, y, {"x_labels": labels, "y_labels": labels})
    assert given["x_labels"].unique().tolist() == [0, 1, 256, 257]
