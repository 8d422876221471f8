"""keodrift train on labelled latents: run folders, resumes, sweeps, the papers' experiments."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import keodrift as kd
from keodrift import runs
from keodrift.cli import main
from keodrift.configuration import compose
from keodrift.data import get_target, load_digits_latents, write_synthetic_alae
from keodrift.errors import OptionError
from keodrift.loss import feature_scale
from keodrift.networks import ConditionalMLP, sample
from keodrift.tasks import Guidance, LatentTask, PlanarTask
from keodrift.training import grouped_parameters

SMALL = [
    "task=latents",
    "drift=one_sided",
    "data.dim=4",
    "network.width=8",
    "batch=4",
    "evaluate_samples=5",
    "evaluate_every=2",
    "task.judge_samples=5",
    "progress=false",
]


def built(*words: str):
    return runs.prepare(compose("train", words))


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """Twenty images of each of ten classes in a file, in the layout of MNIST."""
    monkeypatch.setenv("KEODRIFT_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 256, (200, 28, 28), np.uint8)
    np.savez(tmp_path / "mnist.npz", images=pixels, labels=np.arange(200) % 10)
    return f"data.images.source={tmp_path}/mnist.npz"


@pytest.fixture
def faces(tmp_path):
    write_synthetic_alae(tmp_path / "faces", per_class=4, dim=16)
    return f"data.path={tmp_path}/faces"


def test_a_run_of_latents_is_judged_kept_and_resumed_to_the_same_bits(tmp_path, capsys):
    words = ["train", *SMALL, "guidance=omega", "optimizer.lr=0.01"]
    assert main([*words, "steps=4", f"output={tmp_path}/whole"]) == 0
    assert "W2^2" in capsys.readouterr().out
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    for name in ("w2_squared", "w2_relative", "latent_frechet", "variance_ratio"):
        assert result[name] > 0 and result[f"{name}_floor"] > 0
    assert len(result["w2_squared_by_class"]) == 10
    assert main([*words, "steps=2", f"output={tmp_path}/parts"]) == 0
    assert main(["train", f"output={tmp_path}/parts", "resume=true", "steps=4"]) == 0
    whole, parts = (
        kd.load_network(tmp_path / name / "network.safetensors") for name in ("whole", "parts")
    )
    assert isinstance(whole, ConditionalMLP) and whole.settings["guidance_dim"] == 32
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    made = sample(whole, 10, torch.Generator().manual_seed(0), labels=torch.arange(10))
    assert made.shape == (10, 4)
    capsys.readouterr()
    assert main([*words, f"output={tmp_path}/parts", "resume=true", "data.dim=5"]) == 2
    assert "changed in data.dim (4, now 5)" in capsys.readouterr().err


def test_a_sweep_over_latents_trains_every_combination(tmp_path, capsys):
    command = ["train", "-m", *SMALL, "steps=1", f"output={tmp_path}", "data.dim=2,3"]
    assert main(command) == 0
    for dim in (2, 3):
        network = kd.load_network(tmp_path / f"data.dim={dim}" / "network.safetensors")
        assert (network.dim, network.noise_dim, network.classes) == (dim, dim, 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=digits"], "data: got Latents for a PlanarTask, needs a Target"),
        (["task=latents", "data=spiral"], "data: got Target for a LatentTask, needs a Latents"),
        # Before anything is read, downloaded or trained.
        (
            ["task=planar", "data=mnist", "data.images.source=nowhere"],
            "data: got Latents for a PlanarTask, needs a Target",
        ),
        (["guidance=omega"], "guidance: got one, needs null: keodrift.tasks.PlanarTask"),
        (["classifier=images"], "data.images"),
        (["task=latents", "network=mlp"], "network: got MLP with dim, classes = [2, None]"),
        (["task=latents", "network.classes=3"], "needs ConditionalMLP with [20, 10]"),
        (["task=latents", "network.width=auto"], "network.width: got 'auto'"),
        (["task=latents", "task.judge_samples=1"], "judge_samples: got 1"),
        (["task=latents", "task.features=nowhere:f"], "features: got 'nowhere:f'"),
        (["task=latents", "data=folder"], "data.path: got nothing"),
        (["task=latents", "data=folder", "data.path=nowhere"], "nowhere: path: got no such file"),
        (["rates={enterr:0.1}"], "rates: got 'enterr', needs a part of the network: enter"),
        (["rates={enter:-1}"], "rates.enter: got -1"),
        (["rates=7"], "rates"),
    ],
)
def test_what_does_not_fit_ends_in_one_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words, "steps=1", "output=none"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not any(tmp_path.iterdir())


def test_latents_of_ones_own_and_faces_are_read(tmp_path, faces):
    np.savez(tmp_path / "pets.npz", cat=np.eye(20, 3), dog=-np.eye(20, 3))
    task, trainer = built("task=latents", "data=folder", f"data.path={tmp_path}/pets.npz")
    assert task.latents.class_names == ("cat", "dog") and trainer.state.network.classes == 2
    task, trainer = built("task=latents", "data=alae", faces)
    assert (task.latents.dim, trainer.state.network.classes) == (16, 6)


def test_mnist_along_principal_directions(mnist):
    task, trainer = built("task=latents", "data=mnist_pca", mnist, "data.dim=9")
    assert task.latents.train.shape == (171, 9) and trainer.state.network.dim == 9


def test_the_digits_of_the_paper(tmp_path, mnist):
    small = ("data.epochs=1", "classifier.epochs=1", "evaluate_samples=3", "progress=false")
    config = compose("train", ["experiment=mnist_paper", mnist, *small, f"output={tmp_path}/r"])
    task, trainer = runs.prepare(config)
    network, state, objective = trainer.state.network, trainer.state, trainer.objective
    shape = {"noise_dim": 6, "dim": 6, "classes": 10, "class_dim": 32, "guidance_dim": 32}
    assert network.settings == shape | {"width": 256, "hidden": 3, "seed": 0}
    assert (task.batch, task.guidance, config.steps) == (64, Guidance(16, 4.0, 3.0), 5000)
    assert objective.normalize and objective.scale_features and objective.negatives == "self"
    (drift,) = objective.drifts
    assert drift.relative and drift.half_steps == 41 and drift.cost.name == "squared"
    assert isinstance(state.optimizer, torch.optim.AdamW) and trainer.clip == 2
    (group,) = state.optimizer.param_groups
    assert (group["initial_lr"], *group["betas"], group["weight_decay"]) == (2e-4, 0.9, 0.95, 0.01)
    factors = [group["lr"] / 2e-4]
    for _ in range(750):
        state.optimizer.step()
        state.scheduler.step()
        factors.append(group["lr"] / 2e-4)
    assert factors[0] == pytest.approx(1 / 750) and factors[-1] == pytest.approx(1)
    config.steps = 1
    result = runs.train(config)
    assert 0 <= result["accuracy"] <= 1 and result["w2_squared_floor"] > 0
    baseline = compose("train", ["experiment=mnist_paper", "drift=joint"]).drift
    assert baseline.form == "joint" and baseline.relative


def test_the_faces_of_the_paper(tmp_path, faces):
    config = compose("train", ["experiment=ffhq_paper", faces, "progress=false"])
    task, trainer = runs.prepare(config)
    settings = {"noise_dim": 16, "dim": 16, "classes": 6, "class_dim": 64, "guidance_dim": 0}
    assert trainer.state.network.settings == settings | {"width": 1024, "hidden": 3, "seed": 0}
    assert abs(6 * task.batch - 4096) < 6 and config.steps == 1000
    assert task.judge_samples == task.evaluate_samples == 1000
    groups = trainer.state.optimizer.param_groups
    assert isinstance(trainer.state.optimizer, torch.optim.Adam)
    assert [group["lr"] for group in groups] == [3e-4, 1e-3]
    assert groups[1]["params"] == [trainer.state.network.embedding.weight]
    (drift,) = trainer.objective.drifts
    assert drift.half_steps == 2 * 30 + 1 and drift.cost.name == "squared" and not drift.relative
    words = ["experiment=ffhq_paper", "drift=two_sided", faces, "network.width=8", "batch=5"]
    words += ["steps=1", "evaluate_samples=3", "progress=false"]
    for more in (["steps=1"], ["steps=2", "resume=true"]):
        assert main(["train", *words, *more, f"output={tmp_path}/r"]) == 0


def test_rates_of_parts_leave_every_parameter_in_one_group():
    network = ConditionalMLP(width=8)
    rates = {"embedding": 0.5, "body.layers.0": 0.25}
    groups = grouped_parameters(network, rates)
    assert [group.get("lr") for group in groups] == [None, 0.5, 0.25]
    assert groups[2]["params"] == list(network.body.layers[0].parameters())
    held = sorted(id(p) for group in groups for p in group["params"])
    assert held == sorted(map(id, network.parameters()))
    assert [*grouped_parameters(network, {})[0]["params"]] == [*network.parameters()]
    for inside in (
        {"body": 1.0, "body.layers.0": 0.5},
        {"body.layers.0": 0.5, "body": 1.0},
        {"": 1.0},
        {"bod": 1.0},
    ):
        with pytest.raises(OptionError, match="rates"):
            grouped_parameters(network, inside)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    before = network.embedding.weight.detach().clone()
    sum(p.sum() for p in network.parameters()).backward()
    optimizer.step()
    torch.testing.assert_close(network.embedding.weight, before - 0.5)


def test_a_reach_is_that_of_the_widest_class_and_may_be_in_mean_costs():
    task = LatentTask(load_digits_latents(3))
    classes = [task.latents.of_class(k) for k in range(10)]
    assert task.reach() == max(kd.reach_for_gaps(cloud) for cloud in classes)
    assert task.reach("squared", relative=True) == pytest.approx(task.reach(relative=True))
    modes = PlanarTask(get_target("two_modes"))
    cloud = modes._problems()[0]
    mean = float(torch.cdist(cloud.double(), cloud.double()).square().mean()) / 2
    assert modes.reach(relative=True) == pytest.approx(modes.reach() / mean)
    words = ("task=latents", "data.dim=3", "drift=relaxed", "+drift.relative=true")
    (drift,) = built(*words)[1].objective.drifts
    assert drift.reach == pytest.approx(built(*words)[0].reach(relative=True))


def test_a_resume_may_show_progress_and_checkpoint_otherwise(mnist, tmp_path):
    """Also where other keys are interpolated from these."""
    words = ["data=mnist", mnist, "data.dim=2", "data.epochs=1", f"output={tmp_path}/run"]
    assert main(["train", *SMALL, *words, "data.progress=${progress}", "steps=1"]) == 0
    resume = ["train", f"output={tmp_path}/run", "resume=true", "steps=2"]
    assert main([*resume, "progress=true", "checkpoint_every=7"]) == 0
    assert main([*resume, "evaluate_every=3"]) == 2


def test_an_automatic_reach_is_in_the_unit_of_the_features_that_the_loss_scales():
    words = ["task=latents", "drift=relaxed", "data.dim=4"]
    task, plain = built(*words)
    _, scaled = built(*words, "objective.scale_features=true")
    # ½‖x−y‖² of one class is divided by the square of its scale.
    found = [trainer.objective.drifts[0].reach for trainer in (plain, scaled)]
    clouds = [task.latents.of_class(k) for k in range(10)]
    by_class = [kd.reach_for_gaps(cloud) for cloud in clouds]
    assert found[0] == pytest.approx(max(by_class))
    squares = [float(feature_scale(cloud, cloud)) ** 2 for cloud in clouds]
    expected = max(reach / size for reach, size in zip(by_class, squares, strict=True))
    assert found[1] == pytest.approx(expected, rel=1e-4)
