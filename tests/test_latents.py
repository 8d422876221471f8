"""Latents from arrays and files: labels, splits, what stays on disk, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from keodrift.data import Latents
from keodrift.errors import (
    ArgumentError,
    DtypeError,
    NonFiniteError,
    OptionError,
    RunError,
    ShapeError,
)

PETS = ["dog", "cat", "cat", "dog", "cat", "dog", "cat", "cat", "cat", "cat"]


def rows(n: int, d: int = 3, dtype: str = "float32") -> np.ndarray:
    return np.arange(n * d, dtype=dtype).reshape(n, d)


class TestArrays:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
    def test_any_floating_point_becomes_float32_with_the_same_values(self, dtype):
        latents = Latents.from_arrays(rows(10, dtype=dtype), PETS)
        both = torch.cat((latents.train, latents.test))
        assert both.dtype == torch.float32 and latents.train_labels.dtype == torch.int64
        assert torch.equal(both[both[:, 0].argsort()], torch.from_numpy(rows(10)))

    def test_float32_tensors_with_a_test_part_are_not_copied(self):
        z, test = torch.randn(4, 3), torch.randn(2, 3)
        latents = Latents.from_arrays(z, test=test)
        assert latents.train.data_ptr() == z.data_ptr()
        assert latents.test.data_ptr() == test.data_ptr()
        assert latents.class_names == ("all",)

    def test_an_array_that_may_not_be_written_is_copied_without_a_warning(self, recwarn):
        z = rows(4)
        z.flags.writeable = False
        Latents.from_arrays(z, test=z).train.zero_()
        assert z.sum() > 0 and not recwarn.list

    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            (PETS, ("cat", "dog")),
            (np.where(np.array(PETS) == "dog", 10, 9).astype(np.int16), ("9", "10")),
            (torch.tensor([1 if pet == "dog" else -1 for pet in PETS]), ("-1", "1")),
        ],
    )
    def test_labels_are_numbered_in_their_sorted_order(self, labels, names):
        latents = Latents.from_arrays(rows(10), labels)
        assert latents.class_names == names
        for points, codes in (
            (latents.train, latents.train_labels),
            (latents.test, latents.test_labels),
        ):
            places = (points[:, 0] / 3).long().tolist()
            assert codes.tolist() == [int(PETS[place] == "dog") for place in places]

    def test_class_names_fix_the_order_and_name_integers(self):
        z = rows(10)
        by_word = Latents.from_arrays(z, PETS, class_names=("dog", "cat"))
        numbers = [0 if pet == "dog" else 1 for pet in PETS]
        by_number = Latents.from_arrays(z, numbers, class_names=("dog", "cat"))
        assert by_word.class_names == by_number.class_names == ("dog", "cat")
        assert torch.equal(by_word.train_labels, by_number.train_labels)

    def test_the_split_takes_its_share_of_every_class_and_at_least_one_on_both_sides(self):
        labels = [0] * 100 + [1] * 40 + [2] * 2
        latents = Latents.from_arrays(rows(142), labels, test_fraction=0.25)
        assert torch.bincount(latents.train_labels).tolist() == [75, 30, 1]
        assert torch.bincount(latents.test_labels).tolist() == [25, 10, 1]
        places = torch.cat((latents.train, latents.test))[:, 0].div(3).long()
        assert sorted(places.tolist()) == list(range(142))
        most = Latents.from_arrays(rows(142), labels, test_fraction=0.999)
        assert torch.bincount(most.train_labels).tolist() == [1, 1, 1]

    def test_the_seed_alone_decides_the_split(self):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        one, same, other = (Latents.from_arrays(rows(100), seed=s).test for s in (0, 0, 1))
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert torch.equal(torch.get_rng_state(), state)

    def test_names_count_the_classes_where_none_are_given(self):
        labels = torch.tensor([0, 2, 1])
        latents = Latents(torch.randn(3, 2), labels, torch.randn(3, 2), labels)
        assert latents.class_names == ("0", "1", "2")
        assert latents.decode is None and latents.image_shape is None

    @pytest.mark.parametrize(
        ("error", "words", "z", "options"),
        [
            (DtypeError, "z: got int64", rows(4, dtype="int64"), {}),
            (DtypeError, "z: got list", [[0.0]], {}),
            (ShapeError, r"z: got shape \(12,\)", rows(4).ravel(), {}),
            (ShapeError, r"z: got shape \(0, 3\)", rows(0), {}),
            (NonFiniteError, "z: got 12 NaN", np.full((4, 3), np.nan), {}),
            (NonFiniteError, "z: got 12 NaN", np.full((4, 3), 1e300), {}),
            (ShapeError, r"labels: got shape \(3,\)", rows(4), {"labels": [0, 0, 1]}),
            (DtypeError, "labels: got float64", rows(4), {"labels": np.ones(4)}),
            (OptionError, "labels: got one latent of class 1", rows(3), {"labels": [0, 0, 1]}),
            (OptionError, "one latent of class 'all'", rows(1), {}),
            (ShapeError, "test: got d = 2", rows(4), {"test": rows(2, 2)}),
            (OptionError, "test_labels: got None", rows(2), {"labels": [0, 1], "test": rows(2)}),
            (OptionError, "test_labels: got labels without", rows(4), {"test_labels": [0]}),
            (ArgumentError, "test_fraction: got 0", rows(4), {"test_fraction": 0}),
            (
                OptionError,
                r"test_labels: got the label 3, needs classes among \[0, 1\]",
                rows(2),
                {"labels": [0, 1], "test": rows(2), "test_labels": [0, 3]},
            ),
            (
                OptionError,
                "test_labels: got no latent of class 1",
                rows(2),
                {"labels": [0, 1], "test": rows(2), "test_labels": [0, 0]},
            ),
            (
                OptionError,
                "labels: got no latent of class 'fish'",
                rows(10),
                {"labels": PETS, "class_names": ("cat", "dog", "fish")},
            ),
            (
                OptionError,
                "labels: got the label 'dog'",
                rows(10),
                {"labels": PETS, "class_names": ("cat",)},
            ),
            (
                OptionError,
                "class_names: got",
                rows(10),
                {"labels": PETS, "class_names": ("cat", "dog", "cat")},
            ),
        ],
    )
    def test_refusals_name_the_argument(self, error, words, z, options):
        with pytest.raises(error, match=words):
            Latents.from_arrays(z, **options)


class TestFiles:
    def test_an_npz_holds_one_array_a_class(self, tmp_path):
        np.savez(tmp_path / "pets.npz", dog=rows(4), cat=-rows(6).astype("float64"))
        latents = Latents.load(tmp_path / "pets.npz", test_fraction=0.5)
        assert latents.class_names == ("cat", "dog")
        assert torch.bincount(latents.train_labels).tolist() == [3, 2]
        assert (latents.of_class(0) <= 0).all() and (latents.of_class(1) >= 0).all()

    def test_an_npz_of_latents_and_labels_is_that(self, tmp_path):
        np.savez(tmp_path / "pets.npz", latents=rows(10), labels=PETS)
        latents = Latents.load(tmp_path / "pets.npz")
        assert torch.equal(latents.train, Latents.from_arrays(rows(10), PETS).train)

    def test_an_npy_finds_its_labels_beside_it_or_has_one_class(self, tmp_path):
        path = tmp_path / "z.npy"
        np.save(path, rows(10))
        assert Latents.load(path).class_names == ("all",)
        np.save(tmp_path / "z_labels.npy", np.array(PETS))
        assert Latents.load(path).class_names == ("cat", "dog")

    def test_a_folder_of_two_npz_is_split_as_they_are(self, tmp_path):
        np.savez(tmp_path / "train.npz", dog=rows(4), cat=rows(6))
        np.savez(tmp_path / "test.npz", dog=rows(2), cat=rows(3))
        latents = Latents.load(tmp_path)
        assert torch.bincount(latents.train_labels).tolist() == [6, 4]
        assert torch.equal(latents.of_class(1, test=True), torch.from_numpy(rows(2)))

    def test_a_folder_of_latents_and_labels(self, tmp_path):
        np.save(tmp_path / "latents.npy", rows(10))
        np.save(tmp_path / "labels.npy", np.array(PETS))
        assert Latents.load(str(tmp_path)).class_names == ("cat", "dog")

    def test_a_mapped_file_is_neither_read_whole_nor_changed(self, tmp_path, recwarn):
        path = tmp_path / "z.npy"
        np.save(path, rows(10))
        mapped = np.load(path, mmap_mode="c")
        latents = Latents.from_arrays(mapped, test=rows(1))
        assert latents.train.data_ptr() == mapped.ctypes.data
        latents.train.zero_()
        assert np.array_equal(np.load(path), rows(10)) and not recwarn.list

    @pytest.mark.parametrize(
        ("name", "arrays", "words"),
        [
            ("a.npz", {"cat": rows(3), "dog": rows(3, 2)}, "a.npz: dog: got d = 2"),
            ("a.npz", {"z": rows(3), "labels": np.zeros(3, int)}, "needs latents and labels"),
            ("a.npz", {"cat": rows(3), "dog": rows(0)}, r"a.npz: dog: got shape \(0, 3\)"),
            ("a.npz", {"cat": rows(3), "dog": rows(1)}, "a.npz: labels: got one .* 'dog'"),
            ("a.npz", {"latents": rows(3), "labels": [1]}, r"a.npz: labels: got shape \(1,\)"),
            ("a.npz", {}, "a.npz: keys: got none"),
            ("a.npy", {}, "a.npy: path: got no such file"),
            ("a.csv", {}, "a.csv: path: got no such file"),
            ("", {}, r"path: got a folder that begins with \[\]"),
        ],
    )
    def test_refusals_name_the_file_and_the_key(self, tmp_path, name, arrays, words):
        if name.endswith(".npz"):
            np.savez(tmp_path / name, **arrays)
        with pytest.raises(ArgumentError, match=words):
            Latents.load(tmp_path / name)

    def test_other_classes_to_test_than_to_train_are_refused(self, tmp_path):
        np.savez(tmp_path / "train.npz", dog=rows(4), cat=rows(6))
        np.savez(tmp_path / "test.npz", dog=rows(4))
        with pytest.raises(OptionError, match="test_labels: got no latent of class 'cat'"):
            Latents.load(tmp_path)
        np.savez(tmp_path / "test.npz", dog=rows(4), cat=rows(6, 2))
        with pytest.raises(ShapeError, match="test.npz: dog: got d = 3, needs .*, 2"):
            Latents.load(tmp_path)

    def test_damaged_and_pickled_files_are_named(self, tmp_path):
        (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 no archive")
        np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
        for name in ("a.npz", "b.npy"):
            with pytest.raises(RunError, match=f"cannot read .*{name}"):
                Latents.load(tmp_path / name)
        with pytest.raises(RunError, match="Python objects"):
            Latents.load(tmp_path / "b.npy")
        (tmp_path / "c.npz").write_text("version https://git-lfs.github.com/spec/v1")
        with pytest.raises(RunError, match="it is no file of NumPy's"):
            Latents.load(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_labels": torch.tensor([0, 0, 2, 2])}, "train_labels: got no latent of class '1'"),
        ({"test_labels": torch.tensor([0, 0, 0, 1])}, "test_labels: got no latent of class '2'"),
        ({"test_labels": torch.tensor([0, 1, 2, 3])}, "test_labels: got 0…3"),
        ({"test": torch.zeros(4, 2)}, "test: got shape"),
        ({"train": torch.zeros(4)}, "train: got shape"),
        ({"train_labels": torch.zeros(3, dtype=torch.long)}, "train_labels: got shape"),
        ({"train_labels": torch.zeros(4)}, "train: got torch.float32 with torch.float32 labels"),
        ({"test": torch.zeros(4, 3, dtype=torch.long)}, "test: got torch.int64"),
    ],
)
def test_latents_that_do_not_fit_are_refused(change, said):
    labels = torch.tensor([0, 1, 2, 2])
    parts = {"train": torch.zeros(4, 3), "train_labels": labels}
    parts |= {"test": torch.zeros(4, 3), "test_labels": labels}
    Latents(**parts)
    with pytest.raises(ArgumentError) as caught:
        Latents(**parts | change)
    assert str(caught.value).startswith(said)


def test_two_of_four_are_held_out_and_one_of_three():
    latents = Latents.from_arrays(torch.randn(7, 2), [0, 0, 0, 0, 1, 1, 1])
    assert torch.bincount(latents.test_labels).tolist() == [2, 1]


def test_arrays_beside_latents_and_labels_are_not_passed_over(tmp_path):
    path = tmp_path / "latents.npz"
    np.savez(path, latents=np.ones((4, 2)), labels=np.array([0, 0, 1, 1]), split=np.zeros(4))
    with pytest.raises(OptionError, match=r"keys: got split, needs latents and labels alone"):
        Latents.load(path)


def test_labels_that_are_objects_are_said_to_be_some(tmp_path):
    path = tmp_path / "latents.npz"
    labels = np.array(["cat", "cat", "dog", "dog"], dtype=object)
    np.savez(path, latents=np.ones((4, 2)), labels=labels)
    with pytest.raises(RunError, match="it holds Python objects"):
        Latents.load(path)
