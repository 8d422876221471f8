"""Numbers kept from before the rooms were moved: fields, flows, trainings and a figure.

What is stored was computed once, in float64 where not said otherwise, and is met to rounding; where
a solve or a training amplifies roundings, the comment beside the tolerance says by how much. Solves
are stored since they begin at few clusters, and joint fields away from the particles since a new
row counts in its own columns.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

import keodrift as kd
from keodrift.data import get_target
from keodrift.flow import simulate
from keodrift.networks import MLP, sample
from keodrift.papers import reproduce
from keodrift.tasks import target_batches
from keodrift.training import Objective, Trainer

F64 = torch.float64
STORED = np.load(Path(__file__).parent / "golden.npz")


def stored(name):
    return torch.from_numpy(STORED[name])


def same(got, name, atol=1e-12):
    got = torch.as_tensor(got).detach().double()
    torch.testing.assert_close(got, stored(name), rtol=0, atol=atol)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def student(x, y):
    return (1 + ((x - y) ** 2).sum(-1)).log()


def ring(n, seed, std):
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=generator).double() * (math.pi / 4)
    centres = 2 * torch.stack([angle.cos(), angle.sin()], -1)
    return centres + std * torch.randn(n, 2, generator=generator, dtype=F64)


COSTS = {"half_squared": 0.8, "squared": 1.6, "euclidean": 0.5, "student": 0.4}
RECIPES = {
    "one-sided": lambda tau, **o: kd.OneSidedDrift(tau, **o),
    "split": lambda tau, **o: kd.TwoSidedDrift(tau, **o),
    "joint": lambda tau, **o: kd.TwoSidedDrift(tau, form="joint", **o),
    "sinkhorn T=21": lambda tau, **o: kd.SinkhornDrift(tau, half_steps=21, **o),
    "sinkhorn": lambda tau, **o: kd.SinkhornDrift(tau, tol=1e-9, **o),
}
X, Y, U, Z = normal(0, 9, 3), 0.7 * normal(1, 12, 3) + 1, 1.5 * normal(2, 4, 3), 2 * normal(3, 5, 3)
A, B, W = normal(4, 9).exp(), normal(5, 12).exp(), normal(6, 4).exp()
A[2], B[5], W[1] = 0, 0, 0
every_recipe = pytest.mark.parametrize("recipe", RECIPES)


def rounding(recipe):
    """Converged solves may begin elsewhere: they agree to their tolerance, here 1e-9."""
    return 1e-7 if recipe == "sinkhorn" else 1e-12


@every_recipe
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("velocity", ["barycentric", "gradient"])
def test_fields(recipe, cost, velocity):
    own = student if cost == "student" else cost
    drift = RECIPES[recipe](COSTS[cost], cost=own, velocity=velocity)
    field = drift.fit(X, Y, x_weights=A, y_weights=B, negatives=U, negative_weights=W)
    same(torch.cat([field(), field(Z)]), f"field/{recipe}/{cost}/{velocity}", rounding(recipe))


def test_floored_and_masked_fields():
    same(kd.TwoSidedDrift(0.3, form="joint", floor=0.01)(X, Y), "field/joint, floor")
    masked = kd.SinkhornDrift(0.8, mask_self=True, half_steps=9)
    same(masked(X, Y), "field/masked sinkhorn")


@every_recipe
def test_classes(recipe):
    labels = {"x_labels": torch.tensor([0, 1, 2] * 3), "y_labels": torch.tensor([0, 1, 2, 2] * 3)}
    same(RECIPES[recipe](0.8)(X, Y, **labels), f"classes/{recipe}", rounding(recipe))


# The same number of half-steps, so only roundings differ, and what a solve makes of them: at the
# smaller temperature a hundred extrapolations.
@pytest.mark.parametrize(
    ("tau", "dtype", "atol"), [(0.1, F64, 1e-10), (0.02, F64, 1e-6), (0.1, torch.float32, 1e-3)]
)
def test_solves(tau, dtype, atol):
    x, y = ring(700, 2, 0.3).to(dtype), ring(600, 3, 0.08).to(dtype)
    field = kd.SinkhornDrift(tau, cost="squared", backend="tiled").fit(x, y)
    name = f"solve/{tau}/{str(dtype)[6:]}"
    same([c.half_steps for c in field.couplings], f"{name}/half_steps")
    same(field.marginal_error, f"{name}/error", atol)
    same(field()[::50], name, atol)


def test_cells():
    x, y = ring(4000, 2, 0.3).float(), ring(3500, 3, 0.08).float()
    drift = kd.SinkhornDrift(0.1, cost="squared", backend="cells", half_steps=5)
    same(drift(x, y)[::300], "solve/cells", 1e-4)  # cells leave out 1e-5 of every sum


def test_divergence():
    x = X.clone().requires_grad_()
    value = kd.sinkhorn_divergence(x, Y, 0.8, x_weights=A, tol=1e-10)
    value.backward()
    same(value, "divergence/value")
    same(x.grad, "divergence/gradient", 1e-8)


def test_neighbours():
    x, y = ring(700, 2, 0.3), ring(600, 3, 0.08)
    same(kd.effective_neighbours(kd.SinkhornDrift(0.3).fit(x, y)), "neighbours", 1e-8)
    same(kd.tau_for_neighbours(kd.OneSidedDrift(1.0), x, y, 20), "tau_for_neighbours")


def test_flows():
    x, y = ring(120, 5, 0.3), ring(100, 6, 0.08)
    solved = simulate(kd.SinkhornDrift(0.1, cost="squared", tol=1e-5), x, y, 0.1, 30)
    same(solved.final[::10], "flow/final", 1e-3)  # thirty solves to 1e-5, from other starts
    one_sided = simulate(kd.OneSidedDrift(0.1, cost="squared"), x, y, 0.1, 30)
    same(one_sided.final[::10], "flow/one-sided", 1e-11)


SOLVED = kd.SinkhornDrift(0.2, cost="squared", tol=1e-6, max_half_steps=300, backend="dense")
OBJECTIVES = {
    "sinkhorn": Objective(SOLVED),
    "two temperatures": Objective(
        [kd.OneSidedDrift(0.1), kd.TwoSidedDrift(0.5)], normalize=True, scale_features=True
    ),
}


@pytest.mark.filterwarnings("ignore::keodrift.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_trainings(name):
    network = MLP(width=32, seed=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    trainer = Trainer(
        network,
        target_batches(network, get_target("eight_gaussians"), 128),
        OBJECTIVES[name],
        optimizer,
        torch.Generator().manual_seed(3),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25),
        ema=0.9,
        clip=1.0,
        log_every=1,
    )
    # What is stored is of an average whose decay was the same from the first step.
    trainer.state.ema.multi_avg_fn = get_ema_multi_avg_fn(0.9)
    trainer.run(25)
    # Twenty-five steps in float32, which amplify roundings.
    same([row["loss"] for row in trainer.history], f"training/{name}/loss", 1e-3)
    samples = sample(trainer.average, 20, torch.Generator().manual_seed(5))
    same(samples, f"training/{name}/samples", 1e-3)


def test_a_figure(tmp_path):
    """Particle flows of the first paper, small; float32, twenty steps."""
    report = reproduce("fig5", tmp_path, quick=True, workers=0, progress=False)
    same([row["w2_squared"] for row in report.rows], "figure/w2", 1e-4)
    same([row["neighbours"] for row in report.rows], "figure/neighbours", 1e-2)
