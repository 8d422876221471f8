"""Latents of one's own: from arrays, from files, and the layouts of public faces."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from keodrift.data import (
    ALAE_CLASSES,
    Latents,
    load_alae,
    load_digit_images,
    load_digits_latents,
    pca_latents,
    write_synthetic_alae,
)
from keodrift.errors import (
    ArgumentError,
    DtypeError,
    NonFiniteError,
    OptionError,
    RunError,
    ShapeError,
)

Z = np.random.default_rng(0).normal(size=(40, 3))
WORDS = np.array(["cat", "dog", "eel", "fox"] * 10)


def test_every_latent_is_in_one_part_and_every_class_in_both():
    latents = Latents.from_arrays(Z, WORDS, test_fraction=0.3)
    together = torch.cat([latents.train, latents.test]).double()
    assert torch.equal(together.sort(0).values, torch.from_numpy(Z).float().double().sort(0).values)
    assert latents.class_names == ("cat", "dog", "eel", "fox")
    assert torch.bincount(latents.train_labels).tolist() == [7] * 4
    assert torch.bincount(latents.test_labels).tolist() == [3] * 4
    kept = {
        tuple(z.tolist()): word for z, word in zip(torch.from_numpy(Z).float(), WORDS, strict=True)
    }
    for z, label in zip(latents.test, latents.test_labels, strict=True):
        assert kept[tuple(z.tolist())] == latents.class_names[int(label)]
    again = Latents.from_arrays(torch.from_numpy(Z), WORDS.tolist(), test_fraction=0.3)
    assert torch.equal(again.train, latents.train)
    other = Latents.from_arrays(Z, WORDS, test_fraction=0.3, seed=1)
    assert not torch.equal(other.train, latents.train)


def test_latents_without_labels_are_one_class():
    latents = Latents.from_arrays(Z)
    assert latents.class_names == ("all",) and len(latents.train) == 36


def test_labels_of_any_integers_are_numbered_in_order():
    latents = Latents.from_arrays(Z, np.array([7, -1] * 20), test=Z, test_labels=[7, -1] * 20)
    assert latents.class_names == ("-1", "7") and latents.train_labels[:2].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"z": Z[0]}, ShapeError, "^z: .*\\(3,\\)"),
        ({"z": Z.astype(int)}, DtypeError, "^z"),
        ({"z": np.where(Z > 2, np.nan, Z)}, NonFiniteError, "^z"),
        ({"labels": WORDS[:5]}, ShapeError, "^labels"),
        ({"labels": WORDS, "class_names": ["cat", "dog"]}, OptionError, "'eel'"),
        ({"labels": WORDS, "class_names": [*sorted(set(WORDS)), "gnu"]}, OptionError, "'gnu'"),
        ({"labels": ["cat"] + ["dog"] * 39}, OptionError, "one latent of class 'cat'"),
        ({"test": Z[:, :2]}, ShapeError, "^test: got d = 2"),
        ({"labels": WORDS, "test": Z}, OptionError, "^test_labels"),
        ({"test_labels": WORDS}, OptionError, "^test_labels"),
        ({"test_fraction": 1.0}, ArgumentError, "^test_fraction"),
    ],
)
def test_what_does_not_fit_is_named(arguments, error, says):
    with pytest.raises(error, match=says):
        Latents.from_arrays(**{"z": Z} | arguments)


def test_files_of_every_layout_hold_the_same(tmp_path):
    expected = Latents.from_arrays(Z, WORDS)
    np.savez(tmp_path / "pairs.npz", latents=Z, labels=WORDS)
    np.save(tmp_path / "rows.npy", Z.astype(np.float32))
    np.save(tmp_path / "rows_labels.npy", WORDS)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "latents.npy", Z)
    np.save(folder / "labels.npy", WORDS)
    for path in ("pairs.npz", "rows.npy", "folder"):
        latents = Latents.load(tmp_path / path)
        assert torch.equal(latents.train, expected.train)
        assert torch.equal(latents.test_labels, expected.test_labels)
        assert latents.class_names == expected.class_names
    np.savez(tmp_path / "classes.npz", **{word: Z[word == WORDS] for word in set(WORDS)})
    split = tmp_path / "split"
    split.mkdir()
    for part in ("train", "test"):
        shutil.copy(tmp_path / "classes.npz", split / f"{part}.npz")
    assert Latents.load(tmp_path / "classes.npz").class_names == expected.class_names
    both = Latents.load(split)
    assert torch.equal(both.train, both.test) and len(both.train) == 40


def test_a_mapped_file_is_neither_read_whole_nor_changed(tmp_path):
    np.save(tmp_path / "latents.npy", Z.astype(np.float32))
    np.save(tmp_path / "labels.npy", WORDS)
    before = (tmp_path / "latents.npy").read_bytes()
    latents = Latents.load(tmp_path, seed=3)
    latents.train.zero_()
    assert (tmp_path / "latents.npy").read_bytes() == before


def test_a_file_that_does_not_fit_is_named_with_its_key(tmp_path):
    np.savez(tmp_path / "a.npz", cat=Z, dog=Z[:, :2])
    with pytest.raises(ShapeError, match="a.npz: dog"):
        Latents.load(tmp_path / "a.npz")
    with pytest.raises(OptionError, match="no such file"):
        Latents.load(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"half")
    with pytest.raises(RunError, match=r"c\.npz"):
        Latents.load(tmp_path / "c.npz")
    with pytest.raises(OptionError, match="a folder that begins with"):
        Latents.load(tmp_path)


@pytest.mark.parametrize("layout", ["classes", "rows"])
def test_both_layouts_of_faces_hold_the_same_latents(tmp_path, layout):
    write_synthetic_alae(tmp_path / layout, layout=layout, per_class=3, dim=6)
    write_synthetic_alae(tmp_path / "other", per_class=3, dim=6)
    one, other = load_alae(tmp_path / layout), load_alae(tmp_path / "other")
    assert one.class_names == ALAE_CLASSES
    for k in range(6):
        for test in (False, True):
            a, b = (latents.of_class(k, test=test).sort(0).values for latents in (one, other))
            assert torch.equal(a, b) and len(a) == (3 if test else 18)


def test_ages_decide_the_classes_and_the_unknown_are_left_out(tmp_path):
    age = np.array([-1, 0, 17, 18, 54, 55, 90] * 12)
    gender = np.array(["male", "female"] * 42)
    z = np.arange(84.0)[:, None] * np.ones(2)
    for name, column in (("latents", z), ("gender", gender), ("age", age)):
        np.save(tmp_path / f"{name}.npy", column)
    latents = load_alae(tmp_path)
    assert len(latents.train) == int((age[:72] >= 0).sum())
    for z_i, label in zip(latents.train, latents.train_labels, strict=True):
        i = int(z_i[0])
        years = "children" if age[i] < 18 else "adult" if age[i] < 55 else "old"
        assert ALAE_CLASSES[int(label)] == f"{gender[i]}_{years}" and age[i] >= 0 and i < 72
    with pytest.raises(OptionError, match="adult_from"):
        load_alae(tmp_path, adult_from=60)
    np.save(tmp_path / "age.npy", age[:5])
    with pytest.raises(ShapeError, match=r"age\.npy"):
        load_alae(tmp_path)


def test_pca_of_any_images_is_that_of_the_digits():
    exact, rounded = load_digits_latents(6), pca_latents(load_digit_images(), 6)
    assert torch.equal(exact.train_labels, rounded.train_labels)
    assert (exact.train.abs() - rounded.train.abs()).abs().max() < 0.02
    with pytest.raises(ArgumentError, match="^dim: got 65"):
        pca_latents(load_digit_images(), 65)
