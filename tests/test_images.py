"""MNIST from a download, IDX files and an archive: the same images, or an error that says where."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from keodrift.data import Images, load_mnist, to_unit
from keodrift.errors import DtypeError, OptionError, RunError, ShapeError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (14, 28, 28), dtype=np.uint8)
LABELS = np.arange(14, dtype=np.int64) % 10


def write_idx(folder, *, compress=False):
    for part, rows in (("train", slice(0, 12)), ("t10k", slice(12, 14))):
        for kind, array in (("images", GREY[rows]), ("labels", LABELS[rows].astype(np.uint8))):
            raw = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes() + array.tobytes()
            name = f"{part}-{kind}-idx{array.ndim}-ubyte"
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / name).write_bytes(raw)


def test_every_source_gives_the_same_images(tmp_path, monkeypatch):
    expected = (GREY[:12], LABELS[:12], GREY[12:], LABELS[12:])
    for name in ("plain", "packed"):
        (tmp_path / name).mkdir()
        write_idx(tmp_path / name, compress=name == "packed")
    np.savez(tmp_path / "a.npz", images=GREY, labels=LABELS)
    order = RANDOM.permutation(14)
    np.savez(tmp_path / "b.npz", images=GREY[order], labels=LABELS[order], split=(order >= 12) * 1)
    answer = (GREY.reshape(14, -1).astype(float), LABELS.astype(str))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *a, **k: answer)
    for source in (None, "plain", "packed", "a.npz", "b.npz"):
        images = load_mnist(None if source is None else tmp_path / source)
        found = (images.train, images.train_labels, images.test, images.test_labels)
        if source == "b.npz":
            assert sorted(map(bytes, images.train.numpy())) == sorted(map(bytes, GREY[:12]))
            continue
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, torch.from_numpy(other.copy()))
    digest = load_mnist(tmp_path / "plain").digest()
    assert load_mnist(tmp_path / "a.npz", sha256=digest.upper()).digest() == digest
    with pytest.raises(OptionError, match=f"{digest}.*needs those of 00"):
        load_mnist(tmp_path / "a.npz", sha256="00")


def test_a_download_that_fails_says_so(monkeypatch):
    def refuse(*args, **options):
        raise OSError("no route")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", refuse)
    with pytest.raises(RunError, match="cannot download MNIST .no route"):
        load_mnist()


def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(OptionError, match="no such file or folder"):
        load_mnist(tmp_path / "none.npz")
    with pytest.raises(OptionError, match="train-images-idx3-ubyte: got no such file"):
        load_mnist(tmp_path)
    write_idx(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ShapeError, match="train-labels-idx1-ubyte: got 11 bytes"):
        load_mnist(tmp_path)
    path.write_bytes(b"\0\0\x08\x03" + whole[4:])
    with pytest.raises(OptionError, match="magic number 2051"):
        load_mnist(tmp_path)
    np.savez(tmp_path / "a.npz", images=GREY)
    with pytest.raises(OptionError, match="a.npz: labels"):
        load_mnist(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=GREY[:, :8], labels=LABELS)
    with pytest.raises(ShapeError, match="images"):
        load_mnist(tmp_path / "a.npz")


def test_images_are_checked_and_scaled():
    grey, labels = torch.from_numpy(GREY), torch.from_numpy(LABELS)
    assert float(to_unit(grey).max()) == GREY.max() / 255
    with pytest.raises(DtypeError):
        to_unit(grey.float())
    for changed in ({"train": grey.float()}, {"train_labels": labels[:3]}, {"class_names": ("a",)}):
        parts = {"train": grey, "train_labels": labels, "test": grey, "test_labels": labels}
        with pytest.raises((DtypeError, ShapeError, OptionError)):
            Images(**parts | {"class_names": tuple("0123456789")} | changed)
