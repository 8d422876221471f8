"""What drifts remember from step to step is kept in checkpoints, and what solves say is logged."""

from __future__ import annotations

import pytest
import torch

import keodrift as kd
from keodrift.data import get_target
from keodrift.errors import ArgumentError
from keodrift.networks import MLP, ConditionalMLP
from keodrift.tasks import target_batches
from keodrift.training import Objective, Trainer


def critic(**options):
    return kd.CriticDrift("jensen_shannon", steps=2, **options)


def trainer(folder, drift, *, classes: bool = False, negatives: str = "self") -> Trainer:
    network = ConditionalMLP(2, 2, 8, width=8, seed=1) if classes else MLP(width=8)
    target = get_target("eight_gaussians" if classes else "two_moons")
    return Trainer(
        network,
        target_batches(network, target, 48 if classes else 16, negatives=negatives),
        Objective(drift, negatives=negatives),
        torch.optim.Adam(network.parameters(), lr=1e-2),
        torch.Generator().manual_seed(0),
        folder=folder,
        log_every=1,
    )


def weights(run: Trainer) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(run.state.network.parameters())


REMEMBERING = {
    "critic": lambda: critic(),
    "two critics and slices": lambda: [
        critic(),
        kd.SlicedWassersteinDrift(2, generator=torch.Generator().manual_seed(3)),
        critic(seed=1),
    ],
    "flow": lambda: kd.KLDrift(
        0.5, form="flow", samples=2, generator=torch.Generator().manual_seed(3)
    ),
}


@pytest.mark.parametrize("make", REMEMBERING.values(), ids=REMEMBERING)
@pytest.mark.parametrize("negatives", ["self", "crossed"])
def test_a_resumed_run_is_one_that_never_stopped(tmp_path, make, negatives):
    whole = trainer(tmp_path / "whole", make(), negatives=negatives)
    whole.run(6)
    first = trainer(tmp_path / "cut", make(), negatives=negatives)
    first.run(3)
    second = trainer(tmp_path / "cut", make(), negatives=negatives)
    second.run(6, resume=True)
    assert torch.equal(weights(second), weights(whole))
    losses = [[row["loss"] for row in run.history] for run in (whole, second)]
    assert losses[0] == losses[1]


def test_critics_of_classes_are_kept_class_by_class(tmp_path):
    whole = trainer(tmp_path / "whole", critic(), classes=True)
    whole.run(4)
    trainer(tmp_path / "cut", critic(), classes=True).run(2)
    again = trainer(tmp_path / "cut", critic(), classes=True)
    again.run(4, resume=True)
    assert torch.equal(weights(again), weights(whole))


def test_a_training_carries_its_critic(cloud):
    x, y = cloud(0, 9, 2).float(), cloud(1, 12, 2).float()
    objective, drift = Objective(critic()), critic()
    batch = kd.training.Batch((), y)
    objective(x, batch)
    first = objective.report()
    objective(x, batch)
    field = drift.fit(x, y)
    assert first == {"critic_bound": float(field.bound)}
    field = drift.fit(x, y, start=field)
    assert objective.report() == {"critic_bound": float(field.bound)}


def test_a_checkpoint_without_the_memory_is_another_objective_s(tmp_path):
    trainer(tmp_path, kd.OneSidedDrift(0.5)).run(1)
    with pytest.raises(ArgumentError, match="objective"):
        trainer(tmp_path, critic()).run(2, resume=True)


def test_other_critics_are_refused(tmp_path):
    trainer(tmp_path, critic()).run(1)
    drawing = kd.SlicedWassersteinDrift(2, generator=torch.Generator())
    with pytest.raises(ArgumentError, match="objective: got"):
        trainer(tmp_path, drawing).run(2, resume=True)


@pytest.mark.parametrize("drift", [kd.KALEDrift(1.0, lam=0.5), kd.ChiSquareDrift(1.0, lam=0.5)])
@pytest.mark.parametrize("classes", [False, True])
def test_duals_say_how_far_they_were_solved(tmp_path, drift, classes):
    run = trainer(tmp_path, drift, classes=classes)
    run.run(2)
    for row in run.history:
        assert row["passes"] >= 3 and 0 <= row["witness_error"] <= drift.tol
