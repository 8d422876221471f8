"""Particle flows: Euler steps, what is kept, and the warm start."""

from __future__ import annotations

import math

import pytest
import torch

import keodrift as kd
from keodrift.errors import ArgumentError
from keodrift.flow import simulate


def cloud(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def test_euler_steps_match_the_closed_form():
    flow = simulate(lambda x, y: -x, cloud(5), cloud(3), 0.1, 20)
    assert torch.allclose(flow.final, cloud(5) * 0.9**20, rtol=1e-4)
    assert flow.trajectory.shape == (21, 5, 2)
    assert flow.times.tolist() == pytest.approx([0.1 * k for k in range(21)])


def test_keep_stores_every_kth_and_always_the_end():
    flow = simulate(lambda x, y: torch.ones_like(x), cloud(2), cloud(2), 1.0, 10, keep=4)
    assert flow.times.tolist() == [0, 4, 8, 10]
    assert torch.allclose(flow.trajectory[2], cloud(2) + 8)


def test_start_is_not_changed_and_no_graph_is_kept():
    start = cloud(6).requires_grad_()
    before = start.detach().clone()
    flow = simulate(kd.SinkhornDrift(0.5), start, cloud(7, 1), 0.5, 3)
    assert torch.equal(start.detach(), before)
    assert not flow.trajectory.requires_grad
    assert torch.is_grad_enabled()


def test_batched_clouds_flow_as_if_alone():
    x, y = torch.stack((cloud(6), cloud(6, 1))), torch.stack((cloud(7, 2), cloud(7, 3)))
    drift = kd.SinkhornDrift(0.5, tol=1e-6)
    together = simulate(drift, x, y, 0.3, 4)
    assert together.trajectory.shape == (5, 2, 6, 2)
    alone = simulate(drift, x[1], y[1], 0.3, 4)
    assert torch.allclose(together.final[1], alone.final, atol=1e-4)


def test_options_reach_the_drift():
    weights = torch.tensor([1.0, 0.0])
    y = torch.tensor([[1.0, 0.0], [-5.0, 0.0]])
    drift = kd.OneSidedDrift(10.0, mask_self=False)
    flow = simulate(drift, torch.zeros(1, 2), y, 0.5, 40, y_weights=weights)
    assert torch.allclose(flow.final, y[:1], atol=1e-3)


def test_warm_start_gives_the_same_path_for_fewer_iterations():
    x, y = cloud(300) * 0.1, cloud(300, 1)
    drift = kd.SinkhornDrift(1.0, tol=1e-3)
    cold, warm = (simulate(drift, x, y, 0.5, 40, warm_start=on) for on in (False, True))
    assert torch.allclose(cold.final, warm.final, atol=1e-2)
    assert len(warm.half_steps) == len(cold.half_steps) == 40
    assert warm.half_steps[0] == cold.half_steps[0]
    # What is gained is gained late, where particles hardly move.
    assert sum(warm.half_steps) < sum(cold.half_steps)


def test_a_fixed_budget_is_the_same_warm_or_cold():
    x, y, drift = cloud(20), cloud(20, 10), kd.SinkhornDrift(0.05, half_steps=3)
    cold, warm = (simulate(drift, x, y, 0.5, 4, warm_start=on) for on in (False, True))
    assert torch.equal(cold.trajectory, warm.trajectory)
    assert warm.half_steps == (3, 3, 3, 3)


def test_fields_that_solve_nothing_report_no_half_steps():
    x, y = cloud(20), cloud(20, 10)
    assert simulate(kd.OneSidedDrift(0.5), x, y, 0.5, 2).half_steps == ()
    assert simulate(lambda x, y: -x, x, y, 0.5, 2).half_steps == ()


def test_classes_flow_warm_as_they_do_cold():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    x, y, drift = cloud(6).double(), cloud(6, 1).double(), kd.SinkhornDrift(0.5, tol=1e-7)
    options = {"x_labels": labels, "y_labels": labels}
    cold, warm = (simulate(drift, x, y, 0.1, 8, warm_start=on, **options) for on in (False, True))
    assert torch.allclose(cold.final, warm.final, atol=1e-4)
    assert sum(warm.half_steps) < sum(cold.half_steps)


def test_a_converged_drift_moves_mass_across_a_gap_and_a_one_sided_one_does_not():
    def modes(left: int) -> torch.Tensor:
        centre = torch.tensor([[-2.0, 0.0]] * left + [[2.0, 0.0]] * (40 - left))
        return centre + 0.1 * cloud(40, left)

    def share(drift) -> float:
        return float((simulate(drift, modes(36), modes(20), 0.2, 60).final[:, 0] < 0).sum())

    assert share(kd.OneSidedDrift(0.3, cost="squared")) == 36
    assert share(kd.SinkhornDrift(0.3, cost="squared")) == 20


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("step_size", {"step_size": 0.0}),
        ("step_size", {"step_size": math.inf}),
        ("step_size", {"step_size": "a"}),
        ("steps", {"steps": 0}),
        ("keep", {"keep": 0}),
    ],
)
def test_refusals_name_the_argument(argument, values):
    options = {"step_size": 0.1, "steps": 2} | values
    with pytest.raises(ArgumentError, match=f"^{argument}: got"):
        simulate(lambda x, y: -x, cloud(2), cloud(2), **options)


def test_particles_are_a_cloud():
    for wrong in ([[0.0, 0.0]], torch.full((2, 2), torch.nan), torch.zeros(2)):
        with pytest.raises(ArgumentError, match="^x0: got"):
            simulate(lambda x, y: -x, wrong, cloud(2), 0.1, 2)
