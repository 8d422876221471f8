"""Latent tasks: guidance, and how a class-conditional network is judged."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import keodrift as kd
from keodrift.data import Latents, load_digits_latents
from keodrift.errors import ArgumentError, OptionError, ShapeError
from keodrift.metrics import class_wasserstein_squared
from keodrift.networks import ConditionalMLP
from keodrift.tasks import Guidance, LatentTask, latent_batches
from keodrift.tasks.images import shown
from keodrift.training import Objective, Trainer

LATENTS = load_digits_latents(4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(**options) -> ConditionalMLP:
    return ConditionalMLP(noise_dim=4, dim=4, width=32, hidden=1, **options)


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_omega_has_the_density_that_was_asked_for(power):
    guidance, random = Guidance(most=4.0, power=power), seeded()
    drawn = torch.tensor([guidance.omega(random) for _ in range(20_000)])
    assert drawn.min() >= 1 and drawn.max() <= 4
    grid = torch.linspace(1, 4, 100_001, dtype=torch.float64)
    density = grid**-power
    mean = float((grid * density).sum() / density.sum())
    assert float(drawn.mean()) == pytest.approx(mean, abs=4 * float(drawn.std()) / 20_000**0.5)


@pytest.mark.parametrize("negatives", ["self", "fresh"])
def test_guidance_is_one_strength_a_step_and_negatives_that_classes_share(negatives):
    guided = network(guidance_dim=8)
    batches = latent_batches(guided, LATENTS, 6, negatives=negatives, guidance=Guidance(5))
    batch = batches(seeded())
    omega = batch.inputs[2]
    assert omega.shape == (60,) and bool((omega == omega[0]).all())
    weights = batch.options["negative_weights"]
    assert batch.options["negatives"].shape == (5, 4)
    torch.testing.assert_close(weights, ((omega[0] - 1) * 5 / 5).expand(5))
    if negatives == "fresh":
        assert torch.equal(batch.model_inputs[2], omega)
    x = guided(*batch.inputs).detach()
    drift = kd.SinkhornDrift(0.05, relative=True, half_steps=41)
    options = dict(batch.options)
    if negatives == "fresh":
        options["model"] = guided(*batch.model_inputs).detach()
    v = drift(x, batch.data, **options)
    k = batch.options["x_labels"] == 3
    alone = {name: options[name] for name in ("negatives", "negative_weights")}
    if negatives == "fresh":
        alone["model"] = options["model"][options["model_labels"] == 3]
    own = drift(x[k], batch.data[batch.options["y_labels"] == 3], **alone)
    torch.testing.assert_close(v[k], own, rtol=1e-4, atol=1e-5)


def test_guidance_needs_a_network_that_is_told():
    with pytest.raises(OptionError, match="guidance_dim > 0"):
        latent_batches(network(), LATENTS, 4, guidance=Guidance())
    for options in ({"most": 0.5}, {"unconditional": 0}, {"power": -1.0}):
        with pytest.raises(OptionError):
            Guidance(**options)


def test_a_guided_run_resumes_to_the_same_bits(tmp_path):
    def trainer(folder):
        made = network(guidance_dim=8)
        batches = latent_batches(
            made, LATENTS, 6, balanced=True, negatives="fresh", guidance=Guidance()
        )
        drift = kd.SinkhornDrift(0.05, relative=True, half_steps=11)
        objective = Objective(drift, negatives="fresh", normalize=True, scale_features=True)
        optimizer = torch.optim.Adam(made.parameters())
        return Trainer(made, batches, objective, optimizer, seeded(), folder=folder)

    whole = trainer(tmp_path / "whole")
    whole.run(6)
    trainer(tmp_path / "parts").run(3)
    rest = trainer(tmp_path / "parts")
    rest.run(6, resume=True)
    for a, b in zip(whole.average.parameters(), rest.average.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("decoded", [True, False])
def test_the_judge_stands_beside_real_latents(tmp_path, decoded):
    latents = LATENTS if decoded else replace(LATENTS, decode=None)
    task, made = LatentTask(latents, evaluate_samples=10), network()
    look = task.evaluate(made)
    result = task.judge(made, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]
    task.draw(made, [{"step": 1, **look}], tmp_path)
    json.dumps(result)
    labels = latents.test_labels
    w2 = class_wasserstein_squared(task.sample(made, labels), labels, latents.test, labels)
    assert result["w2_squared"] == pytest.approx(sum(w2.values()) / 10)
    assert list(result["w2_squared_by_class"]) == list(latents.class_names)
    assert result["w2_squared_floor"] < result["w2_squared"]
    assert result["nearest_neighbour"] > 0.9 > result["nearest_neighbour_floor"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "curves.png",
        "samples.png",
        "samples.npz",
    }


def test_a_classifier_reads_samples_and_real_latents_alike(tmp_path):
    class Brightness(torch.nn.Module):
        def forward(self, images):
            return images.mean((-1, -2))[:, None] * torch.arange(10.0)

    task, made = LatentTask(LATENTS, classifier=Brightness()), network()
    result = task.judge(made, tmp_path)
    labels = LATENTS.test_labels
    read = Brightness()(LATENTS.decode(task.sample(made, labels))).argmax(-1)
    assert result["accuracy"] == pytest.approx(float((read == labels).double().mean()))
    assert 0 < result["accuracy_floor"] < 1
    with pytest.raises(OptionError, match="classifier"):
        LatentTask(replace(LATENTS, decode=None), classifier=Brightness())


def test_what_decodes_to_other_images_is_told_before_a_training():
    with pytest.raises(ShapeError, match=r"^decode: got a function to images \(1, 8, 8\)"):
        LatentTask(replace(LATENTS, decode=lambda z: LATENTS.decode(z)[:, None]))


def test_held_out_latents_that_coincide_have_no_variance_to_compare_with(tmp_path):
    train, labels = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), [0] * 20
    latents = Latents.from_arrays(train, labels, test=torch.zeros(3, 2), test_labels=[0] * 3)
    task = LatentTask(latents, evaluate_samples=10)
    result = task.judge(ConditionalMLP(noise_dim=2, dim=2, classes=1), tmp_path)
    assert result["w2_relative"] == math.inf and result["w2_squared"] > 0


def test_the_judge_averages_over_draws_of_samples_and_of_real_latents(tmp_path):
    task, made = LatentTask(LATENTS, judge_draws=2), network()
    result = task.judge(made, tmp_path)
    labels = LATENTS.test_labels
    points, floors = task.sample(made, labels.repeat(2)).split(len(labels)), []
    assert not torch.equal(*points)
    w2 = [class_wasserstein_squared(z, labels, LATENTS.test, labels) for z in points]
    assert result["w2_squared"] == pytest.approx(sum(sum(one.values()) for one in w2) / 20)
    assert result["w2_squared_by_class"]["3"] == pytest.approx((w2[0][3] + w2[1][3]) / 2)
    for k in range(2):
        real, classes = task._picked(torch.bincount(labels).tolist(), turn=k / 2)
        assert len(torch.unique(real, dim=0)) == len(real)
        found = class_wasserstein_squared(real, classes, LATENTS.test, labels)
        floors.append(sum(found.values()) / 10)
    assert floors[0] != floors[1]
    assert result["w2_squared_floor"] == pytest.approx(sum(floors) / 2)
    with pytest.raises(OptionError, match="judge_draws: got 0"):
        LatentTask(LATENTS, judge_draws=0)


def test_one_cloud_of_all_classes_is_read_by_its_shares(tmp_path):
    class Sign(torch.nn.Module):
        def forward(self, images):
            return 9 * (images[:, 0, :1] > 0.5) * torch.tensor([0.0, 1.0])

    points = torch.tensor([0.0, 1.0]).repeat_interleave(torch.tensor([30, 10]))[:, None]
    latents = Latents.from_arrays(points, test=points + 0.1, decode=lambda z: z[:, None])
    task = LatentTask(latents, classifier=Sign(), judge_samples=8)
    result = task.judge(ConditionalMLP(1, 1, 1, width=4), tmp_path)
    made = task.sample(ConditionalMLP(1, 1, 1, width=4), torch.zeros(8, dtype=torch.long))
    ones = float((made > 0.5).double().mean())
    assert result["share_error"] == pytest.approx(abs(ones - 0.25))
    assert result["share_error_floor"] == 0 and result["sure_floor"] == 0.25
    assert "accuracy" not in result


def test_so_many_held_out_latents_judge(tmp_path):
    task = LatentTask(LATENTS, judge_samples=7)
    result = task.judge(network(), tmp_path)
    real, labels = task._real
    assert torch.equal(torch.bincount(labels), torch.full((10,), 7))
    w2 = class_wasserstein_squared(task.sample(network(), labels), labels, real, labels)
    assert result["w2_squared"] == pytest.approx(sum(w2.values()) / 10)
    assert result["latent_frechet"] > 0 < result["latent_frechet_floor"]
    with pytest.raises(OptionError, match="judge_samples: got 1"):
        LatentTask(LATENTS, judge_samples=1)


def test_features_of_decoded_images_are_compared(tmp_path):
    plain = replace(LATENTS, decode=None)
    identity = {"decoder": lambda z: z[:, None], "features": "torch:squeeze"}
    result = LatentTask(plain, judge_samples=9, **identity).judge(network(), tmp_path)
    for end in ("", "_floor"):
        assert result[f"image_frechet{end}"] == pytest.approx(result[f"latent_frechet{end}"])
    # Without a decoder that of the latents.
    task = LatentTask(LATENTS, features=lambda images: images.flatten(1), judge_samples=9)
    assert "image_frechet" in task.judge(network(), tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": "torch:squeeze"}, "features: got latents without decode"),
        ({"decoder": "no.such.module:f"}, "decoder: got 'no.such.module:f', needs package"),
        ({"decoder": "torch:no_such_name"}, "decoder: got 'torch:no_such_name'"),
        ({"decoder": "torch"}, "decoder: got 'torch'"),
        ({"decoder": "torch:pi"}, "a function, not float"),
        ({"decoder": lambda z: z[:1], "features": len}, r"\(2, 4\) to \(1, 4\), needs one to \(2"),
        ({"decoder": lambda z: z, "features": len}, "features: got a function to int"),
        ({"decoder": lambda z: z.long(), "features": len}, "decoder: got a function to torch.int"),
        ({"decoder": lambda z: z, "features": lambda z: z[:, None]}, r"one to \(2, f\)"),
        ({"decoder": lambda z: z, "features": lambda z: z * torch.nan}, "features: got .* NaN"),
        ({"decoder": lambda z: z / 0}, "decoder: got a function to NaN or infinite"),
        ({"decoder": lambda z: {}[0]}, r"decoder: got a function that fails on \(2, 4\) \(KeyErr"),
    ],
)
def test_a_wrong_decoder_or_feature_is_told_before_a_training(options, words):
    with pytest.raises(ArgumentError, match=words):
        LatentTask(replace(LATENTS, decode=None), **options)


def test_samples_are_kept_before_features_are_judged(tmp_path):
    def features(images):
        return images.flatten(1) * (torch.nan if len(images) > 2 else 1)

    task = LatentTask(LATENTS, features=features, judge_samples=9)
    with pytest.raises(ArgumentError, match="features: got a function to NaN"):
        task.judge(network(), tmp_path)
    assert (tmp_path / "samples.npz").is_file()


def test_a_decoder_that_ends_the_process_is_refused(tmp_path, monkeypatch):
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OptionError, match="^decoder: got 'leaving:f'"):
        LatentTask(LATENTS, decoder="leaving:f")


def test_guidance_is_as_strong_where_halves_repel_each_other():
    """A half has half the repellers, beside which the negatives count."""
    guided, found = network(guidance_dim=8), {}
    for negatives in ("self", "crossed"):
        batches = latent_batches(guided, LATENTS, 8, negatives=negatives, guidance=Guidance(5))
        batch = batches(seeded())
        omega = float(batch.inputs[2][0])
        repellers = 8 if negatives == "self" else 4
        weight = float(batch.options["negative_weights"].sum())
        found[negatives] = 1 + weight / (repellers - 1)
        assert found[negatives] == pytest.approx(omega, rel=1e-6)
    assert found["self"] == pytest.approx(found["crossed"], rel=1e-6)


def test_what_would_fail_at_the_end_is_refused_at_the_door():
    few = Latents.from_arrays(torch.randn(6, 4), [0, 0, 0, 0, 1, 1])
    assert few.of_class(0, test=True).shape == (2, 4)
    with pytest.raises(OptionError, match="latents: got one held-out latent of class '1'"):
        LatentTask(few)
    wide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))
    with pytest.raises(OptionError, match=r"classifier: got Sequential on images \(2, 8, 8\)"):
        LatentTask(LATENTS, classifier=wide)


def test_a_classifier_judges_some_at_a_time_and_without_a_graph():
    sizes, graphs = [], []

    class Watched(torch.nn.Module):
        def forward(self, images):
            sizes.append(len(images))
            graphs.append(torch.is_grad_enabled())
            return images.flatten(1)[:, :10]

    task = LatentTask(LATENTS, classifier=Watched())
    assert task._real_odds.shape == (len(LATENTS.test), 10)
    assert max(sizes) <= 64 and sum(sizes) == 2 + len(LATENTS.test) and not any(graphs)


def test_a_perfect_generator_reaches_the_floor_of_the_curve(tmp_path, monkeypatch):
    """Both are taken at as many points: W₂² of samples falls with their number."""
    random = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 4, generator=random) for n in (4000, 1000))
    task = LatentTask(Latents.from_arrays(train, test=test), evaluate_samples=200)

    class Perfect(torch.nn.Module):
        noise_dim = 4

        def forward(self, noise, labels):
            return noise

    drawn = {}

    def keep(history, floor, title, folder):
        drawn["floor"] = floor

    monkeypatch.setattr(LatentTask, "_draw_curve", staticmethod(keep))
    look = task.evaluate(Perfect())["w2_squared"]
    result = task.judge(Perfect(), tmp_path)
    task.draw(Perfect(), [], tmp_path)
    assert drawn["floor"] == pytest.approx(look, rel=0.15)
    assert result["w2_squared_floor"] < 0.7 * look


def test_images_in_colour_are_drawn(tmp_path):
    def decode(z):
        return z.sigmoid()[:, :3, None, None].expand(-1, 3, 5, 5)

    task = LatentTask(replace(LATENTS, decode=decode, image_shape=(3, 5, 5)), judge_samples=8)
    task.draw(network(), [], tmp_path)
    assert (tmp_path / "samples.png").stat().st_size > 0


def test_exact_transport_judges_no_more_latents_than_it_can(monkeypatch):
    monkeypatch.setattr("keodrift.tasks.latents.JUDGED", 30)
    random = torch.Generator().manual_seed(0)
    points, labels = torch.randn(100, 2, generator=random), [0] * 80 + [1] * 20
    latents = Latents.from_arrays(points, labels, test=points, test_labels=labels)
    real, own = LatentTask(latents)._real
    assert torch.bincount(own).tolist() == [30, 20] and len(real) == 50
    assert len(LatentTask(latents, judge_samples=70)._real[0]) == 90  # where that many were asked


def test_a_classifier_in_training_mode_is_judged_by_and_left_as_it_is():
    classifier = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10)
    )
    LatentTask(LATENTS, classifier=classifier)
    assert classifier.training and not bool(classifier[1].running_mean.any())


def test_grey_images_with_a_channel_are_drawn_as_images(monkeypatch):
    def decode(z):
        return LATENTS.decode(z)[:, None]

    rows = {}
    monkeypatch.setattr("keodrift.plots.plot_image_rows", lambda found, **how: rows.update(found))
    latents = replace(LATENTS, decode=decode, image_shape=(1, 8, 8))
    shown(latents, LATENTS.test, LATENTS.test_labels, LATENTS.test, LATENTS.test_labels)
    assert {tuple(images.shape) for images in rows.values()} == {(16, 8, 8)}


def test_a_class_whose_latents_coincide_needs_no_reach():
    z = torch.cat(
        [torch.zeros(10, 2), torch.randn(10, 2, generator=torch.Generator().manual_seed(0))]
    )
    alike = Latents.from_arrays(z, [0] * 10 + [1] * 10)
    assert LatentTask(alike).reach() == kd.reach_for_gaps(alike.of_class(1))
    with pytest.raises(OptionError, match="^drift.reach"):
        LatentTask(Latents.from_arrays(torch.zeros(10, 2))).reach()
