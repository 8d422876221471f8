"""Even samples: each keeps its law, together they cover it, and what is left resumes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch.quasirandom import SobolEngine

from keodrift.data import get_target
from keodrift.errors import ArgumentError, NonFiniteError, OptionError, ShapeError
from keodrift.networks import MLP, ConditionalMLP, draw_noise
from keodrift.sampling import Pool, Systematic, balanced_normal, neighbour_order
from keodrift.tasks import network_inputs


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(n, 2, generator=generator)


class TestNormal:
    def test_every_row_is_standard_normal_and_rows_differ_between_calls(self):
        generator = seeded()
        draws = torch.stack([balanced_normal(7, 3, generator) for _ in range(1500)])
        for row in (0, 1, 6):
            for axis in range(3):
                assert kstest(draws[:, row, axis].double().numpy(), "norm").pvalue > 1e-3
        assert draws.dtype == torch.float32
        assert len(draws[:, 0, 0].unique()) > 1490
        between = np.corrcoef(draws[:, 2].T.numpy()) - np.eye(3)
        assert np.abs(between).max() < 4 / 1500**0.5

    @pytest.mark.parametrize("balanced", [True, False])
    def test_sixteen_cells_of_equal_probability_hold_equally_many(self, balanced):
        generator, quartiles = seeded(1), torch.tensor([-0.6744898, 0.0, 0.6744898])
        largest = []
        for _ in range(20):
            noise = draw_noise(MLP(), 256, generator, balanced=balanced)
            cell = torch.bucketize(noise, quartiles)
            counts = torch.bincount(4 * cell[:, 0] + cell[:, 1], minlength=16)
            largest.append(int((counts - 16).abs().max()))
        assert max(largest) <= 1 if balanced else min(largest) >= 3

    def test_it_is_the_scrambled_sequence_also_in_its_first_point(self, monkeypatch):
        """torch keeps the first point in single precision, where it may round to 1."""
        seen = []

        class Watched(SobolEngine):
            def draw(self, *args, **kwargs):
                seen.append(self.seed)
                return super().draw(*args, **kwargs)

        monkeypatch.setattr("keodrift.sampling.SobolEngine", Watched)
        noise = balanced_normal(8, 5, seeded(2))
        fresh = SobolEngine(5, scramble=True, seed=seen[0])
        integers = (fresh.draw(8, dtype=torch.float64) * 2**30).round()
        integers[0] = fresh.shift.double()
        expected = torch.special.ndtri((2 * integers + 1) / 2**31).float()
        assert torch.equal(noise, expected)

    def test_the_corners_of_the_cube_stay_finite(self, monkeypatch):
        class Corners(SobolEngine):
            def draw(self, n, dtype):
                self.shift = torch.tensor([0, 2**30 - 1])
                return torch.tensor([[0.0, 1.0], [1 - 2.0**-30, 0.0]], dtype=dtype)

        monkeypatch.setattr("keodrift.sampling.SobolEngine", Corners)
        noise = balanced_normal(2, 2, seeded())
        assert torch.isfinite(noise).all()
        far = torch.tensor(norm.isf(2.0**-31), dtype=torch.float32)
        torch.testing.assert_close(noise, far * torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))

    def test_one_number_of_the_generator_decides_and_nothing_else_changes(self):
        torch.manual_seed(0)
        before, generator = torch.get_rng_state(), seeded(3)
        first = balanced_normal(5, 2, generator)
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(first, balanced_normal(5, 2, seeded(3)))
        assert not torch.equal(first, balanced_normal(5, 2, generator))
        alone = seeded(3)
        for _ in range(2):
            torch.randint(2**63 - 1, (), generator=alone)
        assert torch.equal(generator.get_state(), alone.get_state())

    @pytest.mark.parametrize(
        ("n", "dim", "name"), [(0, 2, "n"), (2, 0, "dim"), (2, 21202, "dim"), (1.5, 2, "n")]
    )
    def test_refusals(self, n, dim, name):
        with pytest.raises(OptionError, match=f"^{name}: got"):
            balanced_normal(n, dim, seeded())

    def test_each_class_is_covered_by_itself(self):
        labels = torch.randperm(3 * 64, generator=seeded(4)) % 3
        network = ConditionalMLP(noise_dim=2, classes=3)
        noise, same = network_inputs(network, 192, seeded(5), labels, balanced=True)
        assert same is labels
        clouds = [noise[labels == c] for c in range(3)]
        assert all(((cloud > 0).sum(0) == 32).all() for cloud in clouds)
        assert not torch.equal(clouds[0], clouds[1])
        with pytest.raises(ShapeError, match="^labels: got"):
            network_inputs(network, 191, seeded(5), labels, balanced=True)


class TestOrder:
    @pytest.mark.parametrize("d", [1, 2, 8, 30])
    def test_neighbours_in_the_order_are_neighbours_in_space(self, d):
        """In 30 dimensions the points fill a plane, which the tree has to find."""
        plane = torch.randn(2048, min(d, 2), generator=seeded()) * 3
        basis = torch.linalg.qr(torch.randn(d, d, generator=seeded(1)))[0]
        points = plane @ basis[: plane.shape[1]] + 1e-3 * torch.randn(2048, d, generator=seeded(2))
        order = neighbour_order(points)
        assert torch.equal(order.sort().values, torch.arange(2048))
        strata = points[order].reshape(64, 32, d)
        within = (strata - strata.mean(1, keepdim=True)).square().sum(-1).mean()
        total = (points - points.mean(0)).square().sum(-1).mean()
        assert within < {1: 0.01}.get(d, 0.06) * total
        assert torch.equal(order, neighbour_order(points))

    @pytest.mark.parametrize("points", [torch.zeros(500, 2), torch.arange(4.0).repeat(99)[:, None]])
    def test_equal_points_are_all_there(self, points):
        order = neighbour_order(points)
        assert torch.equal(order.sort().values, torch.arange(len(points)))
        assert (points[order].diff(dim=0) >= 0).all()

    def test_refusals(self):
        for points, error in (
            (torch.zeros(2, 3, 2), ShapeError),
            (torch.zeros(0, 2), ShapeError),
            (torch.full((3, 2), torch.nan), NonFiniteError),
        ):
            with pytest.raises(error, match="^points: got"):
                neighbour_order(points)


class TestSystematic:
    @pytest.mark.parametrize(("size", "n"), [(12, 4), (13, 4), (5, 12), (7, 7), (1, 3), (97, 10)])
    def test_an_epoch_visits_every_index_once(self, size, n):
        order = torch.randperm(size, generator=seeded()) + 100
        draw, generator = Systematic(order), seeded(1)
        drawn = torch.cat([draw.draw(n, generator) for _ in range(size)])  # n epochs
        assert draw.left == 0
        for epoch in drawn.split(size):
            assert torch.equal(epoch.sort().values, order.sort().values)

    def test_each_draw_takes_one_of_each_stratum(self):
        draw, generator = Systematic(torch.arange(60)), seeded()
        for _ in range(12):  # two epochs
            assert torch.equal(draw.draw(10, generator) // 6, torch.arange(10))

    def test_a_draw_is_even_along_what_is_left(self):
        draw, generator = Systematic(torch.arange(1000)), seeded()
        for n in (7, 130, 33, 256):
            taken = draw.draw(n, generator)
            assert (taken.diff() > 0).all()
            counts = torch.bincount(taken // 250, minlength=4)
            assert (counts - n / 4).abs().max() < 4

    def test_every_index_is_equally_likely_in_every_draw(self):
        """The third takes the 3 that an epoch of 13 has left, and begins another."""
        generator, runs = seeded(), 4000
        samplers = [Systematic(torch.arange(13)) for _ in range(runs)]
        for _ in range(3):
            drawn = [sampler.draw(5, generator) for sampler in samplers]
            counts = torch.stack([torch.bincount(part, minlength=13) for part in drawn]).double()
            error = counts.std(0) / runs**0.5
            assert (error < 0.01).all()
            assert ((counts.mean(0) - 5 / 13).abs() < 4 * error).all()

    @pytest.mark.parametrize("size", [3, 1000, 2**20 + 1])
    def test_the_largest_shift_stays_in_the_order(self, size, monkeypatch):
        monkeypatch.setattr(torch, "randint", lambda high, *_, **__: torch.tensor(high - 1))
        for n in (size, size - 1, size // 2 + 1, 1):
            taken = Systematic(torch.arange(size)).draw(n, seeded())
            assert len(taken.unique()) == n and int(taken[-1]) == size - 1

    def test_it_resumes(self):
        first, generator = Systematic(torch.arange(50)), seeded()
        for _ in range(3):
            first.draw(12, generator)
        state, later = copy.deepcopy(first.state_dict()), copy.deepcopy(generator.get_state())
        expected = [first.draw(12, generator) for _ in range(6)]
        other = Systematic(torch.arange(50))
        other.load_state_dict(state)
        generator.set_state(later)
        assert all(torch.equal(draw, other.draw(12, generator)) for draw in expected)
        with pytest.raises(ArgumentError, match="^state_dict: got a state of 50 points, needs one"):
            Systematic(torch.arange(51)).load_state_dict(state)

    def test_refusals(self):
        for order in (torch.arange(0), torch.zeros(2, 2)):
            with pytest.raises(ShapeError, match="^order: got"):
                Systematic(order)
        with pytest.raises(OptionError, match="^n: got 0"):
            Systematic(torch.arange(3)).draw(0, seeded())


class TestPool:
    def test_an_epoch_is_the_cloud_and_the_next_is_another(self):
        made = []

        def sampler(n, generator):
            made.append(uniform(n, generator))
            return made[-1]

        pool, generator = Pool(sampler, size=100), seeded()
        drawn = torch.cat([pool.draw(30, generator) for _ in range(7)])
        assert len(made) == 3
        for epoch, cloud in zip(drawn[:200].split(100), made[:2], strict=True):
            assert torch.equal(epoch.unique(dim=0), cloud.unique(dim=0))
        assert not torch.equal(made[0], made[1])
        assert pool.draw(250, generator).shape == (250, 2)

    def test_batches_hold_the_modes_evenly(self):
        target, generator = get_target("eight_gaussians"), seeded()
        pool = Pool(target.sample)
        even, free = (
            torch.stack(
                [torch.bincount(target.nearest_mode(draw()), minlength=8) for _ in range(9)]
            )
            for draw in (lambda: pool.draw(512, generator), lambda: target.sample(512, generator))
        )
        assert (even - 64).abs().max() <= 4
        assert (free - 64).abs().max() > 10

    def test_it_resumes_from_a_seed_and_what_is_left(self):
        first, generator = Pool(uniform, size=64), seeded()
        states = [(copy.deepcopy(first.state_dict()), generator.get_state())]
        draws = []
        for _ in range(6):
            draws.append(first.draw(20, generator))
            states.append((copy.deepcopy(first.state_dict()), generator.get_state()))
        for done, (state, later) in enumerate(states[:-1]):
            assert not any(isinstance(part, torch.Tensor) for part in state.values())
            other = Pool(uniform, size=64)
            other.draw(3, seeded(7))  # forgotten by what follows
            other.load_state_dict(state)
            generator.set_state(later)
            assert all(torch.equal(draw, other.draw(20, generator)) for draw in draws[done:])
        with pytest.raises(ArgumentError, match="^state_dict: got a state of 64 points"):
            Pool(uniform, size=65).load_state_dict(states[0][0])

    def test_refusals(self):
        with pytest.raises(OptionError, match="^size: got 0"):
            Pool(uniform, size=0)
        with pytest.raises(OptionError, match="^n: got 0"):
            Pool(uniform).draw(0, seeded())
