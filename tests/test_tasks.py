"""Planar tasks: what a network is fed, and how it is judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import keodrift as kd
from keodrift.data import get_target, load_digits_latents, sample_target
from keodrift.errors import ArgumentError, OptionError
from keodrift.metrics import (
    mode_coverage,
    nearest_neighbour_test,
    variance_ratio,
    wasserstein_squared,
)
from keodrift.networks import MLP, ConditionalMLP, sample
from keodrift.tasks import Guidance, LatentTask, PlanarTask, latent_batches, target_batches
from keodrift.training import Objective, Trainer
from keodrift.training.state import Stateful

EIGHT = get_target("eight_gaussians")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conditional(**options) -> ConditionalMLP:
    return ConditionalMLP(**{"noise_dim": 2, "dim": 2, "classes": 8, "width": 32} | options)


def test_a_plain_network_gets_noise_and_data_alone():
    batch = PlanarTask(EIGHT, batch=16).batches(MLP())(seeded())
    assert [part.shape for part in (*batch.inputs, batch.data)] == [(16, 2), (16, 2)]
    assert not batch.options


def test_a_conditional_network_gets_the_nearest_mode_as_class():
    batch = target_batches(conditional(), EIGHT, 64)(seeded())
    noise, labels = batch.inputs
    assert noise.shape == (64, 2)
    assert (batch.data - EIGHT.modes[labels]).norm(dim=1).max() < EIGHT.mode_radius
    assert torch.equal(batch.options["x_labels"], labels)
    assert torch.equal(batch.options["y_labels"], labels)


def test_a_conditional_network_needs_one_class_a_mode():
    for target, network in ((get_target("spiral"), conditional()), (EIGHT, conditional(classes=3))):
        with pytest.raises(OptionError, match=f"^network: got .*one class a mode; {target.name}"):
            PlanarTask(target).batches(network)
    with pytest.raises(OptionError, match="spiral"):
        get_target("spiral").nearest_mode(torch.zeros(1, 2))


def test_a_conditional_network_learns_where_each_class_lies():
    task, network = PlanarTask(EIGHT, batch=128, evaluate_samples=400), conditional(hidden=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    objective = Objective(kd.OneSidedDrift(1.0))
    run = Trainer(network, task.batches(network), objective, optimizer, seeded(), ema=0.9)
    before = task.evaluate(network)["w2_squared"]
    run.run(120)
    assert task.evaluate(run.average)["w2_squared"] < 0.1 * before
    labels = torch.arange(8).repeat_interleave(20)
    points = sample(run.average, 160, seeded(1), labels=labels)
    assert (EIGHT.nearest_mode(points) == labels).float().mean() > 0.95


def test_more_samples_than_the_metrics_cap_are_all_compared():
    task = PlanarTask(EIGHT, evaluate_samples=2100)
    samples = task.sample(MLP())
    real = sample_target("eight_gaussians", 2100, seeded(1))
    assert samples.shape == (2100, 2)
    found = task.evaluate(MLP())["w2_squared"]
    assert found == wasserstein_squared(samples, real, cap=2100)
    assert found != wasserstein_squared(samples, real)


def test_the_judge_says_what_it_draws(tmp_path):
    task, network = PlanarTask(EIGHT, evaluate_samples=50), MLP()
    history = [{"step": 1, "loss": 1.0}, {"step": 2, "w2_squared": 3.0}]
    result = task.judge(network, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]
    task.draw(network, history, tmp_path)
    scores = ("w2_squared", "variance_ratio", "nearest_neighbour", "wrong_mass")
    floors = [f"{name}_floor" for name in scores]
    assert result.keys() == {*scores, *floors, "modes", "covered", "stray"}
    assert result["w2_squared"] == task.evaluate(network)["w2_squared"]
    with np.load(tmp_path / "samples.npz") as stored:
        generated, real = (torch.from_numpy(stored[name]) for name in ("generated", "real"))
    random = seeded(1)
    assert torch.equal(real, EIGHT.sample(50, random))
    for end, points in (("", generated), ("_floor", EIGHT.sample(50, random))):
        assert result[f"w2_squared{end}"] == wasserstein_squared(points, real)
        assert result[f"variance_ratio{end}"] == variance_ratio(points, real)
        assert result[f"nearest_neighbour{end}"] == nearest_neighbour_test(points, real)
        coverage = mode_coverage(points, EIGHT.modes, EIGHT.mode_radius)
        assert result[f"wrong_mass{end}"] == coverage.wrong_mass
    assert {path.name for path in tmp_path.iterdir()} == {
        "curves.png", "samples.png", "samples.npz",
    }  # fmt: skip
    plain = PlanarTask(get_target("spiral"), evaluate_samples=50)
    assert plain.judge(network, tmp_path).keys() == {*scores[:3], *floors[:3]}


@pytest.mark.parametrize("argument", ["batch", "evaluate_samples"])
@pytest.mark.parametrize("number", [0, -3, 1.5])
def test_refusals_name_the_argument(argument, number):
    with pytest.raises(ArgumentError, match=f"^{argument}: got {number}"):
        PlanarTask(EIGHT, **{argument: number})


def test_balanced_planar_batches_cover_noise_and_data():
    task = PlanarTask(EIGHT, batch=256, balanced=True)
    source, generator = task.batches(MLP()), seeded()
    for _ in range(3):
        batch = source(generator)
        (noise,) = batch.inputs
        assert batch.balanced and not batch.options
        assert ((noise > 0).sum(0) == 128).all()
        modes = torch.bincount(EIGHT.nearest_mode(batch.data), minlength=8)
        assert (modes - 32).abs().max() <= 3
        assert (batch.data - EIGHT.modes[EIGHT.nearest_mode(batch.data)]).norm(dim=1).max() < 0.4


def test_balanced_conditional_batches_cover_the_noise_of_every_class():
    batch = target_batches(conditional(), EIGHT, 512, balanced=True)(seeded())
    noise, labels = batch.inputs
    assert torch.equal(labels, EIGHT.nearest_mode(batch.data))
    assert torch.equal(batch.options["x_labels"], labels)
    assert torch.equal(batch.options["y_labels"], labels)
    for c in range(8):
        mine = noise[labels == c]
        assert ((mine > 0).sum(0) - len(mine) / 2).abs().max() <= 2


def test_balanced_latents_come_once_an_epoch_and_equally_many_of_a_class():
    latents = load_digits_latents(12)
    source, generator = latent_batches(ConditionalMLP(dim=12), latents, 16, balanced=True), seeded()
    sizes = torch.bincount(latents.train_labels)
    batches = [source(generator) for _ in range(int(sizes.min()) // 16)]
    for batch in batches:
        noise, labels = batch.inputs
        assert batch.balanced
        assert torch.equal(labels, torch.arange(10).repeat_interleave(16))
        assert torch.equal(batch.options["x_labels"], labels)
        assert torch.equal(batch.options["y_labels"], labels)
        assert ((noise.unflatten(0, (10, 16)) > 0).sum(1) == 8).all()
    known = dict(
        zip(map(tuple, latents.train.tolist()), latents.train_labels.tolist(), strict=True)
    )
    drawn = [tuple(row) for batch in batches for row in batch.data.tolist()]
    assert [known[row] for row in drawn] == [int(c) for b in batches for c in b.inputs[1]]
    # Images that are equal in the data may be drawn as often as they are there.
    assert len(set(drawn)) >= len(drawn) - (len(latents.train) - len(known))
    with pytest.raises(OptionError, match="^per_class: got 0"):
        latent_batches(ConditionalMLP(dim=12), latents, 0)


def assert_resumes(run, folder, steps: int) -> None:
    """A run that was cut in half ends with the bits of one that was not."""
    straight = run(folder / "a", steps)
    run(folder / "b", steps // 2)
    resumed = run(folder / "b", steps)
    for one, two in zip(
        straight.state.network.parameters(), resumed.state.network.parameters(), strict=True
    ):
        assert torch.equal(one, two)
    assert torch.equal(straight.state.generator.get_state(), resumed.state.generator.get_state())


@pytest.mark.parametrize("kind", ["planar", "conditional", "latents"])
def test_balanced_runs_resume_bit_for_bit(tmp_path, kind):
    def run(folder, steps: int, *, balanced: bool = True) -> Trainer:
        network = {
            "planar": MLP(width=16),
            "conditional": conditional(),
            "latents": ConditionalMLP(dim=6, width=16),
        }[kind]
        if kind == "latents":
            # Ten steps of sixteen end an epoch of some 130.
            batches = latent_batches(network, load_digits_latents(6), 16, balanced=balanced)
        else:
            batches = target_batches(network, EIGHT, 64, balanced=balanced)
        assert isinstance(batches, Stateful) == balanced
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        objective = Objective(kd.OneSidedDrift(0.5, mask_self=False))
        trainer = Trainer(network, batches, objective, optimizer, seeded(), folder=folder)
        trainer.run(steps, resume=True)
        return trainer

    assert_resumes(run, tmp_path, 10)
    with pytest.raises(ArgumentError, match="^resume: got .*batches"):
        run(tmp_path / "b", 11, balanced=False)


def test_one_point_judges_nothing():
    with pytest.raises(OptionError, match="^evaluate_samples: got 1"):
        PlanarTask(EIGHT, evaluate_samples=1)
    assert PlanarTask(EIGHT, batch=1, evaluate_samples=2).batch == 1


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("negatives", ["self", "fresh"])
@pytest.mark.parametrize("data_size", [None, 96])
def test_planar_batches_have_as_many_fresh_draws_as_data(balanced, negatives, data_size):
    how = {"balanced": balanced, "negatives": negatives, "data_size": data_size}
    for network in (MLP(), conditional()):
        batch = target_batches(network, EIGHT, 32, **how)(seeded())
        m = data_size or 32
        assert len(batch.data) == m and len(batch.inputs[0]) == 32
        assert batch.balanced == balanced
        assert [len(z) for z in batch.model_inputs] == [m] * len(batch.model_inputs)
        assert bool(batch.model_inputs) == (negatives == "fresh")
        if len(batch.inputs) > 1:
            y_labels = EIGHT.nearest_mode(batch.data)
            assert torch.equal(batch.options["y_labels"], y_labels)
            assert torch.equal(batch.options["x_labels"], batch.inputs[1])
            counts = torch.bincount(y_labels, minlength=8) * 32 / m
            assert (torch.bincount(batch.inputs[1], minlength=8) - counts).abs().max() <= 5
            if negatives == "fresh":
                assert torch.equal(batch.options["model_labels"], batch.model_inputs[1])
                assert not torch.equal(batch.model_inputs[0][:32], batch.inputs[0])


@pytest.mark.parametrize("balanced", [False, True])
def test_latent_batches_of_more_data_than_samples(balanced):
    latents, network = load_digits_latents(6), ConditionalMLP()
    how = {"balanced": balanced, "negatives": "fresh", "data_per_class": 12}
    batch = latent_batches(network, latents, 4, **how)(seeded())
    each = torch.arange(10)
    for labels, n in (
        (batch.inputs[1], 4),
        (batch.options["x_labels"], 4),
        (batch.options["y_labels"], 12),
        (batch.options["model_labels"], 12),
        (batch.model_inputs[1], 12),
    ):
        assert torch.equal(labels, each.repeat_interleave(n))


def test_crossed_halves_of_balanced_batches_are_clouds_of_their_own():
    batch = target_batches(MLP(), EIGHT, 128, balanced=True, negatives="crossed")(seeded())
    (noise,), data = batch.inputs, batch.data
    for half in (noise[:64], noise[64:]):
        assert ((half > 0).sum(0) == 32).all()
    for half in (data[:64], data[64:]):
        assert (torch.bincount(EIGHT.nearest_mode(half), minlength=8) - 8).abs().max() <= 2


@pytest.mark.parametrize("kind", ["planar", "latents"])
@pytest.mark.parametrize("negatives", ["fresh", "crossed"])
@pytest.mark.parametrize("balanced", [False, True])
def test_every_kind_of_negatives_trains_and_resumes_bit_for_bit(
    tmp_path, kind, negatives, balanced
):
    def run(folder, steps: int) -> Trainer:
        how = {"balanced": balanced, "negatives": negatives}
        if kind == "planar":
            network = MLP(width=16)
            batches = target_batches(network, EIGHT, 32, **how)
        else:
            network = ConditionalMLP(dim=6, width=16)
            batches = latent_batches(network, load_digits_latents(6), 8, **how)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        objective = Objective(kd.SinkhornDrift(0.5), negatives=negatives)
        trainer = Trainer(network, batches, objective, optimizer, seeded(), folder=folder)
        trainer.run(steps, resume=True)
        return trainer

    assert_resumes(run, tmp_path, 6)


def test_what_would_end_a_planar_training_is_refused_before_it():
    target = get_target("eight_gaussians")
    with pytest.raises(OptionError, match=r"^negatives: got 'crossed' for 64 samples and 32 data"):
        target_batches(MLP(), target, 64, negatives="crossed", data_size=32)
    network = ConditionalMLP(noise_dim=2, dim=2, classes=8)
    with pytest.raises(OptionError, match=r"^negatives: got 'crossed' for independent batches"):
        target_batches(network, target, 64, negatives="crossed")
    with pytest.raises(OptionError, match=r"^network: got MLP with dim=3"):
        PlanarTask(target).batches(MLP(dim=3))
    with pytest.raises(OptionError, match=r"^negatives: got 'crossed' for 8 samples and 16 data"):
        latents = load_digits_latents(6)
        latent_batches(ConditionalMLP(dim=6), latents, 8, negatives="crossed", data_per_class=16)


@pytest.mark.parametrize("kind", ["planar", "conditional", "guided latents"])
@pytest.mark.parametrize("balanced", [False, True])
def test_networks_in_double_precision_train_as_in_single(tmp_path, kind, balanced):
    settings = {"batch": 16, "evaluate_samples": 30, "balanced": balanced, "negatives": "fresh"}
    scores = []
    for dtype in (torch.float32, torch.float64):
        if kind == "guided latents":
            task = LatentTask(load_digits_latents(6), guidance=Guidance(2), **settings)
            network = ConditionalMLP(width=16, guidance_dim=4)
        else:
            task = PlanarTask(EIGHT, **settings)
            network = MLP(width=16) if kind == "planar" else conditional(width=16)
        network.to(dtype)
        adam = torch.optim.Adam(network.parameters(), lr=1e-2)
        objective = Objective(kd.SinkhornDrift(0.1, half_steps=5), negatives="fresh")
        source = task.batches(network)
        batch = source(seeded())
        assert {z.dtype for z in (batch.inputs[0], batch.model_inputs[0], batch.data)} == {dtype}
        trainer = Trainer(network, source, objective, adam, seeded(), evaluate=task.evaluate)
        trainer.run(3)
        scores.append(task.judge(network, tmp_path))
    single, double = (torch.tensor([s["w2_squared"], s["variance_ratio"]]) for s in scores)
    torch.testing.assert_close(single, double, rtol=1e-3, atol=0)
