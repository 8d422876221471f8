"""Latents of faces: both layouts give the same classes, and name what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from keodrift.data import ALAE_CLASSES, Latents, load_alae, write_synthetic_alae
from keodrift.errors import ArgumentError, OptionError


def arranged(points: torch.Tensor) -> torch.Tensor:
    return points[points[:, 0].argsort()]


def write_rows(folder, n: int = 84, d: int = 3) -> dict[str, np.ndarray]:
    """Ages 0, 1, 2, … among them every edge, women and men in turn."""
    columns = {
        "latents": np.arange(n * d, dtype="float32").reshape(n, d),
        "gender": np.array(["female", "male"] * (n // 2)),
        "age": (7 * np.arange(n)) % 73,
    }
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    return columns


def test_the_two_layouts_of_a_synthetic_set_hold_the_same_latents(tmp_path):
    found = {}
    for layout in ("classes", "rows"):
        write_synthetic_alae(tmp_path / layout, layout=layout, per_class=5, dim=8, seed=3)
        found[layout] = load_alae(tmp_path / layout)
    one, two = found.values()
    assert one.class_names == two.class_names == ALAE_CLASSES
    for label in range(6):
        for test, count in ((False, 30), (True, 5)):
            first, second = (part.of_class(label, test=test) for part in (one, two))
            assert len(first) == count
            assert torch.equal(arranged(first), arranged(second))
    assert torch.equal(Latents.load(tmp_path / "rows").train_labels, two.train_labels)


def test_a_synthetic_class_has_its_own_mean_and_a_spectrum_that_decays(tmp_path):
    write_synthetic_alae(tmp_path, per_class=200, dim=64)
    latents = load_alae(tmp_path)
    clouds = [latents.of_class(label) for label in range(6)]
    means = torch.stack([cloud.mean(0) for cloud in clouds])
    assert torch.pdist(means).min() > 4
    for cloud in clouds:
        variance = torch.linalg.eigvalsh(cloud.T.cov()).flip(0)
        expected = 16 / torch.arange(1, 33) + 0.01
        assert (variance[:32] / expected).sub(1).abs().max() < 0.25
        assert variance[32:].max() < 0.02


def test_the_seed_alone_decides_a_synthetic_set(tmp_path):
    state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_synthetic_alae(tmp_path / name, layout="rows", per_class=2, dim=4, seed=seed)
    one, same, other = (np.load(tmp_path / name / "latents.npy") for name in "abc")
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("adult_from", "old_from"), [(18, 55), (13, 65)])
def test_rows_are_classed_by_gender_and_age_and_the_first_six_sevenths_train(
    tmp_path, adult_from, old_from
):
    columns = write_rows(tmp_path)
    latents = load_alae(tmp_path, adult_from=adult_from, old_from=old_from)
    for points, labels, places in (
        (latents.train, latents.train_labels, range(72)),
        (latents.test, latents.test_labels, range(72, 84)),
    ):
        assert (points[:, 0] / 3).long().tolist() == list(places)
        for place, label in zip(places, labels.tolist(), strict=True):
            age = columns["age"][place]
            word = "children" if age < adult_from else "adult" if age < old_from else "old"
            assert ALAE_CLASSES[label] == f"{columns['gender'][place]}_{word}"


def test_rows_of_unknown_age_or_another_gender_are_left_out(tmp_path):
    columns = write_rows(tmp_path)
    columns["age"][:3], columns["gender"][70] = -1, "robot"
    np.save(tmp_path / "age.npy", columns["age"][:, None].astype(float))
    np.save(tmp_path / "gender.npy", columns["gender"][:, None])
    latents = load_alae(tmp_path)
    kept = (latents.train[:, 0] / 3).long().tolist()
    assert kept == [place for place in range(3, 72) if place != 70]


def test_refusals_name_the_file_and_the_key(tmp_path):
    with pytest.raises(OptionError, match="nowhere: path: got no such"):
        load_alae(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="adult_from: got 60"):
        load_alae(tmp_path, adult_from=60)
    columns = write_rows(tmp_path)
    with pytest.raises(OptionError, match="no latent of class 'female_old'"):
        load_alae(tmp_path, old_from=1000)
    for name, column, words in (
        ("gender", columns["gender"][:-1], r"gender.npy: got shape \(83,\)"),
        ("age", columns["age"].astype(str), "age.npy: got <U"),
        ("latents", columns["latents"].astype(int), "latents.npy: got int64"),
    ):
        np.save(tmp_path / f"{name}.npy", column)
        with pytest.raises(ArgumentError, match=words):
            load_alae(tmp_path)
        write_rows(tmp_path)


def test_a_class_that_is_missing_or_unknown_is_named(tmp_path):
    classes = {name: np.ones((2, 3)) for name in ALAE_CLASSES}
    np.savez(tmp_path / "train.npz", **classes)
    np.savez(tmp_path / "test.npz", **{name: classes[name] for name in ALAE_CLASSES[1:]})
    with pytest.raises(OptionError, match="test_labels: got no latent of class 'female_adult'"):
        load_alae(tmp_path)
    np.savez(tmp_path / "test.npz", **classes, robot=np.ones((2, 3)))
    with pytest.raises(OptionError, match="the label 'robot'"):
        load_alae(tmp_path)


def test_a_synthetic_set_is_not_written_over_anything(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(OptionError, match="folder: got"):
        write_synthetic_alae(tmp_path)
    for options, word in (({"layout": "heap"}, "layout"), ({"per_class": 0}, "per_class")):
        with pytest.raises(OptionError, match=word):
            write_synthetic_alae(tmp_path / "new", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
