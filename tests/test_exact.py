"""Exact transport as a start: its potentials against a linear program, and what begins there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import keodrift as kd
from keodrift.costs import half_squared, squared
from keodrift.data import sample_target
from keodrift.transport import Clusters, EntropicProblem, Sinkhorn, coarse
from keodrift.transport.exact import _network_simplex, exact_potential


def weights(seed: int, n: int) -> torch.Tensor:
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.sum()


def linear_program(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """min ⟨C, π⟩ over couplings of a and b."""
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    held = np.concatenate([a, b])
    found = linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=held)
    return float(found.fun)


@pytest.mark.parametrize("batched", [False, True])
def test_the_potential_is_dual_to_a_linear_program(cloud, batched):
    shape = (2,) if batched else ()
    x, y = cloud(0, 2, 7, 3), cloud(1, 2, 5, 3)
    a, b = (torch.stack([weights(s, n), weights(s + 9, n)]) for s, n in ((0, 7), (1, 5)))
    tau = torch.tensor([0.3, 2.0], dtype=torch.float64)
    if not batched:
        x, y, a, b, tau = (z[0] for z in (x, y, a, b, tau))
    g = exact_potential(EntropicProblem(x, y, a, b, half_squared, tau))
    assert g.shape == (*shape, 5) and g.dtype == torch.float64
    cost = torch.cdist(x, y).square() / 2
    g = g * tau[..., None]  # in the unit of the cost
    f = (cost - g[..., None, :]).amin(-1)
    value = (a * f).sum(-1) + (b * g).sum(-1)
    for one, *problem in zip(
        *(z.reshape(-1, *z.shape[len(shape) :]) for z in (value, cost, a, b)), strict=True
    ):
        expected = linear_program(*(z.numpy() for z in problem))
        assert float(one) == pytest.approx(expected, rel=1e-9)


def test_points_without_weight_do_not_disturb_it(cloud):
    x, y, a = cloud(0, 6, 2), cloud(1, 5, 2), weights(0, 6)
    b = torch.cat([weights(1, 4), torch.zeros(1, dtype=torch.float64)])
    whole = exact_potential(EntropicProblem(x, y, a, b, squared, 1.0))
    without = exact_potential(EntropicProblem(x, y[:4], a, b[:4], squared, 1.0))
    cost = torch.cdist(x, y).square()
    values = [
        float((a * (cost[:, : len(g)] - g).amin(-1)).sum() + (b[: len(g)] * g).sum())
        for g in (whole[:4], without)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-9) and bool(whole.isfinite().all())


def test_between_modes_of_equal_mass_it_is_amid_all_optimal_ones():
    """Three pairs of modes on a line; in float32 weights, which sum to 1 up to their rounding."""
    at = torch.tensor([0.0, 5.0, 11.0], dtype=torch.float64).repeat_interleave(4)
    y, x = ((at + s * torch.linspace(0, 1, 12, dtype=torch.float64))[:, None] for s in (0.2, 0.1))
    a = torch.full((12,), 1 / 12, dtype=torch.float32).double() * (1 + 1e-9 * torch.arange(12))
    g = exact_potential(EntropicProblem(x, y, a / a.sum(), a.flip(0) / a.sum(), squared, 1.0))
    cost = (x - y.T).square()
    f = (cost - g).amin(-1)
    assert float((a * (f + g)).sum()) == pytest.approx(float((cost.diagonal() * a).sum()), rel=1e-6)
    slack = cost - f[:, None] - g
    between = slack.reshape(3, 4, 3, 4).amin((1, 3))
    for left in (0, 1):  # neighbours could move as far apart as together
        assert float(between[left, left + 1]) == pytest.approx(float(between[left + 1, left]))
        assert float(between[left, left + 1]) > 1


def test_infinite_costs_are_not_for_the_simplex(cloud):
    def near(x, y):
        squares = ((x - y) ** 2).sum(-1)
        return squares.where(squares < 9, torch.inf)

    x, y = cloud(0, 30, 2), cloud(1, 30, 2)
    a = torch.full((30,), 1 / 30, dtype=torch.float64)
    assert exact_potential(EntropicProblem(x, y, a, a, kd.Cost("near", near), 0.01)) is None


@pytest.mark.parametrize("tau", [0.1, 0.01, 0.001])
def test_steep_problems_of_few_clusters_are_solved_before_any_half_step(tau):
    """Modes of unequal mass in x and y: potentials of a cooled start are hundreds of τ off."""
    generator = torch.Generator().manual_seed(0)
    x, y = (sample_target("eight_gaussians", 1000, generator).double() for _ in range(2))
    x = x + 0.2 * torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    a = torch.full((1000,), 1e-3, dtype=torch.float64)
    few = EntropicProblem(x, y, a, a, squared, tau).coarsened(128, Clusters())
    found = coarse(few, Sinkhorn(tol=3e-3))
    assert float(found.marginal_error) <= 3e-3


@pytest.mark.parametrize("modes", [2, 8])
def test_masses_that_have_settled_take_few_half_steps(modes):
    """A flow at small τ into modes of equal mass, whose potentials have play of hundreds of τ."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.arange(modes) / modes
    centres = 2 * torch.stack([angle.cos(), angle.sin()], -1)
    even = centres.repeat_interleave(400 // modes, 0)
    uneven = torch.cat([even[:100], centres[0].expand(200, 2), even[300:]])
    x, y = (z + 0.1 * torch.randn(400, 2, generator=generator) for z in (uneven, even))
    flow = kd.simulate(kd.SinkhornDrift(0.03, cost="squared"), x, y, 0.1, 25)
    assert max(flow.half_steps[15:]) <= 15


def test_a_broken_package_beside_pot_leaves_another_start(cloud, monkeypatch):
    tried = []

    def broken():
        tried.append(None)
        raise RuntimeError("of another package")

    x, y, drift = cloud(0, 50, 2), cloud(1, 50, 2), kd.SinkhornDrift(1e-3)
    expected = drift(x, y)
    monkeypatch.setattr("keodrift.transport.exact.import_pot", broken)
    _network_simplex.cache_clear()
    try:
        for _ in range(2):
            torch.testing.assert_close(drift(x, y), expected, rtol=0, atol=0.05)
    finally:
        _network_simplex.cache_clear()
    assert len(tried) == 1  # a try takes a second
