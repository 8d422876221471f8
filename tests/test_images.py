"""Images: every source of MNIST gives the same, damage is named, and PCA goes there and back."""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from keodrift.data import (
    Images,
    load_digit_images,
    load_digits_latents,
    load_mnist,
    pca_latents,
    to_unit,
)
from keodrift.errors import (
    ArgumentError,
    DtypeError,
    MissingDependencyError,
    OptionError,
    RunError,
    ShapeError,
)

N = 14
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 28, 28)).astype(np.uint8)
LABELS = (np.arange(N) % 10).astype(np.uint8)
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def idx_bytes(array: np.ndarray) -> bytes:
    header = np.array([0x800 + array.ndim, *array.shape], dtype=">i4")
    return header.tobytes() + array.tobytes()


def write_idx(folder, packed: bool = False) -> None:
    parts = (PIXELS[:12], LABELS[:12], PIXELS[12:], LABELS[12:])
    for name, part in zip(FILES, parts, strict=True):
        raw = idx_bytes(part)
        path = folder / f"{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(raw) if packed else raw)


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, images=PIXELS, labels=LABELS)
    return path


class TestMnist:
    def test_every_source_gives_the_same_images(self, tmp_path, stored, monkeypatch):
        import sklearn.datasets

        asked = []

        def fetch(name, **options):
            asked.append((name, options["version"]))
            return PIXELS.reshape(N, 784).astype(float), LABELS.astype(str)

        monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
        sources = [None, stored]
        for packed in (False, True):
            folder = tmp_path / f"idx{packed}"
            folder.mkdir()
            write_idx(folder, packed)
            sources.append(folder)
        digests = {load_mnist(source).digest() for source in sources}
        assert len(digests) == 1 and asked == [("mnist_784", 1)]
        images = load_mnist(stored, sha256=digests.pop())
        assert torch.equal(images.train, torch.from_numpy(PIXELS[:12]))
        assert images.test_labels.tolist() == [2, 3] and images.test_labels.dtype == torch.int64
        assert images.image_shape == (28, 28) and images.class_names == tuple("0123456789")

    def test_a_split_says_what_trains(self, stored):
        split = np.arange(N) % 2
        np.savez(stored, images=PIXELS, labels=LABELS, split=split)
        images = load_mnist(stored)
        assert torch.equal(images.test, torch.from_numpy(PIXELS[1::2]))
        assert torch.equal(images.train_labels, torch.from_numpy(LABELS[::2]).long())

    def test_another_digest_is_refused_with_both(self, stored):
        digest = load_mnist(stored).digest()
        with pytest.raises(OptionError, match=f"source: .*{digest}, needs .*{'0' * 64}"):
            load_mnist(stored, sha256="0" * 64)

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            ({"images": PIXELS}, "labels: got only"),
            ({"labels": LABELS}, "images: got only"),
            ({"images": PIXELS[:, 1:], "labels": LABELS}, r"images: got uint8 \(12, 27, 28\)"),
            ({"images": PIXELS.astype(float), "labels": LABELS}, "images: got float64"),
            ({"images": PIXELS, "labels": LABELS[1:]}, r"labels: got shape \(13,\)"),
            ({"images": PIXELS, "labels": LABELS + 3}, "train_labels: got 3…12"),
            ({"images": PIXELS, "labels": LABELS.astype(float)}, "labels: got float64"),
            ({"images": PIXELS, "labels": LABELS, "split": LABELS}, "split: got values"),
        ],
    )
    def test_an_npz_that_does_not_fit_is_named(self, stored, arrays, words):
        np.savez(stored, **arrays)
        with pytest.raises(ArgumentError, match=f"mnist.npz: {words}"):
            load_mnist(stored)

    @pytest.mark.parametrize(
        ("raw", "words"),
        [
            (idx_bytes(LABELS[:12]), "magic number 2049, needs 2051"),
            (idx_bytes(PIXELS[:12])[:-1], r"9407 bytes, needs 9408 for the shape \[12, 28, 28\]"),
        ],
    )
    def test_an_idx_file_that_does_not_fit_is_named(self, tmp_path, raw, words):
        write_idx(tmp_path)
        (tmp_path / "train-images-idx3-ubyte").write_bytes(raw)
        with pytest.raises(ArgumentError, match=f"train-images-idx3-ubyte: got .*{words}"):
            load_mnist(tmp_path)

    def test_missing_and_damaged_files_are_named(self, tmp_path):
        with pytest.raises(OptionError, match="nowhere: source: got no such"):
            load_mnist(tmp_path / "nowhere")
        write_idx(tmp_path, packed=True)
        damaged = tmp_path / "t10k-images-idx3-ubyte.gz"
        damaged.write_bytes(damaged.read_bytes()[:50])
        with pytest.raises(RunError, match="cannot read .*t10k-images-idx3-ubyte.gz"):
            load_mnist(tmp_path)
        damaged.unlink()
        with pytest.raises(OptionError, match="t10k-images-idx3-ubyte: got no such file"):
            load_mnist(tmp_path)

    def test_a_download_that_fails_says_so(self, monkeypatch):
        import sklearn.datasets

        def fetch(*args, **options):
            raise ConnectionError("no route")

        monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
        with pytest.raises(RunError, match="cannot download MNIST .*no route"):
            load_mnist()
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(MissingDependencyError, match="scikit-learn"):
            load_mnist()


class TestImages:
    def test_unit_images_are_grey_over_255(self):
        images = load_digit_images()
        unit = to_unit(images.test)
        assert unit.shape == (450, 8, 8) and unit.dtype == torch.float32
        assert torch.equal((unit * 255).round().to(torch.uint8), images.test)
        assert to_unit(unit) is unit
        with pytest.raises(DtypeError, match="images: got torch.int64"):
            to_unit(images.test.long())

    def test_digit_images_are_those_of_the_latents(self):
        images, latents = load_digit_images(seed=2), load_digits_latents(64, seed=2)
        for grey, labels, z, of_latents in (
            (images.train, images.train_labels, latents.train, latents.train_labels),
            (images.test, images.test_labels, latents.test, latents.test_labels),
        ):
            assert torch.equal(labels, of_latents)
            assert (latents.decode(z) - to_unit(grey)).abs().max() < 0.501 / 255

    def test_what_disagrees_is_refused(self):
        images = load_digit_images()
        for change, error, words in (
            ({"train": images.train.float()}, DtypeError, "train: got torch.float32"),
            ({"test_labels": images.test_labels.int()}, DtypeError, "test: got .*int32"),
            ({"test": images.test[:, 1:]}, ShapeError, "test: got shape"),
            ({"test": images.test[:0]}, ShapeError, "test: got shape"),
            ({"train_labels": images.test_labels}, ShapeError, "train_labels: got shape"),
            ({"class_names": ("a", "b")}, OptionError, "train_labels: got 0…9"),
        ):
            with pytest.raises(error, match=words):
                replace(images, **change)


class TestPca:
    def test_latents_of_any_images_go_there_and_back(self):
        generator = torch.Generator().manual_seed(0)
        grey = torch.randint(256, (60, 4, 6), generator=generator, dtype=torch.uint8)
        labels = torch.arange(60) % 3
        images = Images(grey[:50], labels[:50], grey[50:], labels[50:], ("a", "b", "c"))
        latents = pca_latents(images, 24)
        assert latents.image_shape == (4, 6) and latents.class_names == ("a", "b", "c")
        assert torch.equal(latents.test_labels, images.test_labels)
        unit = to_unit(images.test)
        assert (latents.decode(latents.test) - unit).abs().max() < 1e-5
        assert (latents.encode(unit) - latents.test).abs().max() < 1e-5
        white = pca_latents(images, 5, whiten=True).train.T.cov()
        assert (white - torch.eye(5)).abs().max() < 1e-4
        with pytest.raises(ArgumentError, match="dim: got 25, needs a dimension in 1…24"):
            pca_latents(images, 25)


def test_directions_without_variance_are_not_whitened():
    images = load_digit_images()
    with pytest.raises(ArgumentError, match=r"^dim: got 64, needs at most \d\d, in whose"):
        pca_latents(images, 64, whiten=True)
    assert float(pca_latents(images, 64).test.abs().max()) < 100


def test_bytes_are_encoded_as_the_images_they_are():
    images = load_digit_images()
    latents = pca_latents(images, 5)
    torch.testing.assert_close(latents.encode(images.test), latents.test)
