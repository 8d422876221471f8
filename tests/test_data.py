"""Targets and latents: their formulas, determinism and refusals."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from keodrift.data import (
    TARGETS,
    get_target,
    load_digits_latents,
    register_target,
    sample_target,
)
from keodrift.errors import ArgumentError, MissingDependencyError, OptionError, ShapeError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_targets_are_float32_deterministic_and_leave_the_global_state(name):
    state = torch.get_rng_state()
    first, same = sample_target(name, 300, seeded()), sample_target(name, 300, seeded())
    generator = seeded()
    sample_target(name, 300, generator)
    fresh = sample_target(name, 300, generator)
    assert first.shape == (300, 2) and first.dtype == torch.float32
    assert torch.isfinite(first).all()
    assert torch.equal(first, same)
    assert not torch.equal(first, fresh)
    assert torch.equal(state, torch.get_rng_state())


def test_targets_ignore_the_default_dtype():
    expected = sample_target("pinwheel", 50, seeded())
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(sample_target("pinwheel", 50, seeded()), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_eight_gaussians_lie_on_a_circle_of_radius_two_with_std_0_08():
    points = sample_target("eight_gaussians", 40_000, seeded())
    nearest = torch.cdist(points, get_target("eight_gaussians").modes).argmin(1)
    share = torch.bincount(nearest, minlength=8) / len(points)
    assert share.sub(1 / 8).abs().max() < 0.01
    offsets = points - get_target("eight_gaussians").modes[nearest]
    assert offsets.std(0).sub(0.08).abs().max() < 0.002
    assert get_target("eight_gaussians").modes.norm(dim=1).sub(2).abs().max() < 1e-6


def test_two_modes_have_equal_halves():
    points = sample_target("two_modes", 40_000, seeded())
    left = points[points[:, 0] < 0]
    assert abs(len(left) / len(points) - 0.5) < 0.01
    assert (left.mean(0) - torch.tensor([-2.0, 0.0])).abs().max() < 0.005


def test_checkerboard_fills_the_even_cells_evenly():
    points = sample_target("checkerboard", 40_000, seeded())
    assert points.abs().max() < 2.3
    # Points clear of the cell borders by four standard deviations of the noise.
    inside = (points - points.floor() - 0.5).abs().amax(1) < 0.3
    cells = points[inside].floor().long() + 2
    assert (cells.sum(1) % 2 == 0).all()
    counts = torch.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16).float()
    assert (counts > 0).sum() == 8
    assert counts[counts > 0].div(counts.sum()).sub(1 / 8).abs().max() < 0.01


def test_two_moons_are_half_circles():
    points = sample_target("two_moons", 20_000, seeded())
    upper = (points.norm(dim=1) - 1).abs()
    lower = ((points - torch.tensor([1.0, 0.5])).norm(dim=1) - 1).abs()
    assert torch.minimum(upper, lower).max() < 6 * 0.08
    assert abs(float((upper < lower).float().mean()) - 0.5) < 0.05


def test_spiral_makes_two_turns_to_radius_2_5():
    points = sample_target("spiral", 20_000, seeded())
    radius = points.norm(dim=1)
    expected = 2.5 * torch.stack(
        [(4 * math.pi * radius / 2.5).cos(), (4 * math.pi * radius / 2.5).sin()], 1
    )
    outer = radius > 0.5
    along = (points / radius[:, None] - expected / 2.5).norm(dim=1)[outer]
    # A radial error of 0.05 turns the arm by 4π·0.05/2.5, about 0.25.
    assert along.median() < 0.25
    assert abs(float(radius.max()) - 2.5) < 0.3


@pytest.mark.parametrize(("name", "radii"), [("rings", (0.5, 1, 1.5, 2)), ("two_circles", (1, 2))])
def test_circles_have_their_radii_in_equal_parts(name, radii):
    radius = sample_target(name, 20_000, seeded()).norm(dim=1)
    nearest = (radius[:, None] - torch.tensor(radii)).abs()
    assert nearest.amin(1).max() < 6 * 0.05
    share = torch.bincount(nearest.argmin(1)) / len(radius)
    assert share.sub(1 / len(radii)).abs().max() < 0.02


def test_a_new_target_can_be_registered_once():
    @register_target("here")
    def here(n, generator):
        return torch.ones(n, 2, dtype=torch.float64)

    try:
        assert sample_target("here", 2, seeded()).dtype == torch.float32
        assert get_target("here").modes is None
        with pytest.raises(OptionError, match="here"):
            register_target("here")(here)
    finally:
        TARGETS.pop("here")


def test_unknown_targets_and_empty_samples_are_refused():
    with pytest.raises(OptionError, match="donut.*eight_gaussians"):
        sample_target("donut", 3, seeded())
    with pytest.raises(ArgumentError, match="n: got 0"):
        sample_target("spiral", 0, seeded())


class TestDigits:
    def test_split_is_fixed_and_stratified(self):
        one, two = load_digits_latents(10), load_digits_latents(10)
        assert torch.equal(one.test, two.test) and torch.equal(one.train, two.train)
        assert len(one.train) + len(one.test) == 1797
        share = torch.bincount(one.test_labels) / torch.bincount(one.train_labels)
        assert share.sub(1 / 3).abs().max() < 0.03

    def test_seed_changes_the_split(self):
        assert not torch.equal(load_digits_latents(10).test, load_digits_latents(10, seed=1).test)

    def test_all_dimensions_reproduce_the_images(self):
        from sklearn.datasets import load_digits

        images = torch.as_tensor(load_digits().images / 16, dtype=torch.float32)
        latents = load_digits_latents(64)
        assert (latents.decode(latents.encode(images)) - images).abs().max() < 1e-4

    def test_latents_have_unit_mean_variance_and_keep_proportions(self):
        latents = load_digits_latents(20)
        variance = latents.train.var(0)
        assert abs(float(variance.mean()) - 1) < 1e-4
        assert variance[0] > 5 * variance[-1]
        whitened = load_digits_latents(20, whiten=True).train.var(0)
        assert whitened.sub(1).abs().max() < 1e-3

    def test_draw_takes_every_class_equally_from_the_training_part(self):
        latents = load_digits_latents(8)
        points, labels = latents.draw(5, seeded())
        assert torch.bincount(labels).tolist() == [5] * 10
        known = torch.cdist(points.double(), latents.train.double())
        assert known.amin(1).max() < 1e-6
        assert torch.equal(latents.train_labels[known.argmin(1)], labels)

    def test_refusals_name_the_argument(self):
        with pytest.raises(ArgumentError, match="dim: got 65"):
            load_digits_latents(65)
        with pytest.raises(ArgumentError, match="test_fraction"):
            load_digits_latents(5, test_fraction=1.0)
        latents = load_digits_latents(5)
        with pytest.raises(ShapeError, match="latents"):
            latents.decode(torch.zeros(2, 6))
        with pytest.raises(ShapeError, match="images"):
            latents.encode(torch.zeros(2, 28, 28))
        with pytest.raises(ArgumentError, match="label: got 10"):
            latents.of_class(10)

    def test_a_missing_scikit_learn_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(MissingDependencyError, match="scikit-learn.*pip install"):
            load_digits_latents(5)
