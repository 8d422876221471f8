"""Sliced Wasserstein: what is its own."""

from __future__ import annotations

import pytest
import torch

import keodrift as kd
from keodrift.errors import OptionError
from keodrift.transport import monotone_shift

F64 = torch.float64


@pytest.mark.parametrize("orthogonal", [False, True])
def test_sliced_translations_go_along_the_mean_of_projections(cloud, orthogonal):
    x, t = cloud(0, 11, 3), torch.tensor([1.0, -2.0, 3.0], dtype=F64)
    field = kd.SlicedWassersteinDrift(6, orthogonal=orthogonal).fit(x, x + t)
    theta = field.directions
    torch.testing.assert_close(theta.norm(dim=-1), torch.ones(6, dtype=F64))
    moved = t / 3 if orthogonal else (theta @ t) @ theta / 6
    z = 5 * cloud(1, 4, 3)
    for v in (field(), field(z)):
        torch.testing.assert_close(v, moved.expand_as(v), rtol=0, atol=1e-13)


def test_sliced_drift_moves_the_mean_by_its_projections(cloud):
    x, y, a = cloud(0, 11, 3), cloud(1, 17, 3) + 1, cloud(2, 11).exp()
    field = kd.SlicedWassersteinDrift(9, orthogonal=True).fit(x, y, x_weights=a)
    a = a / a.sum()
    torch.testing.assert_close(a @ field(), (y.mean(0) - a @ x) / 3, rtol=0, atol=1e-13)


def test_on_a_line_a_step_of_one_is_the_transport(cloud):
    x, y = cloud(0, 50, 1), cloud(1, 50, 1) ** 3
    moved = x + kd.SlicedWassersteinDrift(1)(x, y)
    torch.testing.assert_close(moved.sort(0).values, y.sort(0).values, rtol=0, atol=1e-13)
    assert (moved[x.argsort(0)[:, 0]].diff(dim=0) > 0).all()


def test_a_map_on_a_line_stays_within_its_target(cloud):
    """Weights far below the rounding of their sums."""
    x, y = cloud(0, 200), 10 * cloud(1, 300)
    a = (10 * cloud(2, 200)).exp()
    a, b = a / a.sum(), torch.full((300,), 1 / 300, dtype=F64)
    moved = x + monotone_shift(x, x, a, y, b)
    assert moved.min() >= y.min() - 1e-13 and moved.max() <= y.max() + 1e-13
    assert (moved[x.argsort()].diff() >= -1e-13).all()


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_particles_at_one_place_move_alike_wherever_it_is(cloud, offset):
    x, y = cloud(0, 5, 3).repeat(21, 1) + offset, cloud(1, 80, 3) + offset
    v = kd.SlicedWassersteinDrift(64)(x, y)
    spread = (v.view(21, 5, 3) - v[:5]).abs().max()
    assert float(spread) <= 1e-12 * float(v.abs().max()) * max(1.0, offset)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_chunks_of_directions_are_the_directions(cloud, n):
    x, y = cloud(0, 9, 3), cloud(1, 12, 3)
    whole = kd.SlicedWassersteinDrift(n, chunk=100)(x, y)
    parts = kd.SlicedWassersteinDrift(n, chunk=2)(x, y)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: kd.SlicedWassersteinDrift(0), "directions"),
        (lambda: kd.SlicedWassersteinDrift(chunk=0.5), "chunk"),
        (lambda: kd.SlicedWassersteinDrift(orthogonal=1), "orthogonal"),
        (lambda: kd.SlicedWassersteinDrift(generator="0"), "generator"),
    ],
)
def test_nonsense_is_refused_when_built(make, argument):
    with pytest.raises(OptionError) as caught:
        make()
    assert caught.value.argument == argument
