"""Networks of images: what they learn, and that what was learnt once is kept and never mistaken."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from keodrift.data import Images
from keodrift.errors import DivergedError, DtypeError, OptionError, RunError, ShapeError
from keodrift.vision import (
    ConvAutoencoder,
    ImageClassifier,
    accuracy,
    cache_folder,
    fit,
    image_autoencoder,
    image_classifier,
    image_latents,
    latents_of,
    trained,
)
from keodrift.vision.cached import cached

QUIET = {"epochs": 1, "progress": False}


@pytest.fixture(scope="module")
def digits() -> Images:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn holds the digits")
    found = datasets.load_digits()
    pixels = torch.as_tensor(found.images / 16 * 255).round().to(torch.uint8)
    labels = torch.as_tensor(found.target, dtype=torch.int64)
    names = tuple(str(digit) for digit in range(10))
    return Images(pixels[:1400], labels[:1400], pixels[1400:], labels[1400:], names)


@pytest.fixture
def few(digits) -> Images:
    """What trains in no time."""
    train, labels = digits.train[:64], digits.train_labels[:64]
    return dataclasses.replace(digits, train=train, train_labels=labels)


@pytest.fixture
def no_fit(monkeypatch):
    """From here on, whoever trains fails."""

    def forbid() -> None:
        monkeypatch.setattr(trained, "fit", lambda *_, **__: pytest.fail("trained"))

    return forbid


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("sides", [(28, 28), (8, 8), (4, 12)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_shapes(sides, batch):
    autoencoder = ConvAutoencoder(sides, dim=5, channels=2, width=8).eval()
    images = torch.rand(*batch, *sides)
    latents = autoencoder.encode(images)
    decoded = autoencoder.decode(latents).detach()
    assert latents.shape == (*batch, 5)
    assert decoded.shape == images.shape
    assert 0 <= float(decoded.min()) <= float(decoded.max()) <= 1
    classifier = ImageClassifier(sides, classes=3, channels=2).eval()
    assert classifier(images).shape == (*batch, 3)


def test_latents_tell_digits_apart_and_an_independent_classifier_agrees(digits, tmp_path):
    options = {"cache": tmp_path, "progress": False}
    latents = image_latents(digits, 6, epochs=25, **options)
    classifier = image_classifier(digits, epochs=10, **options)
    images = digits.test / 255
    decoded = latents.decode(latents.test)
    mean = (digits.train / 255).mean(0)
    assert float(((decoded - images) ** 2).mean()) < 0.5 * float(((mean - images) ** 2).mean())
    assert accuracy(classifier, digits.test, digits.test_labels) > 0.93
    assert accuracy(classifier, decoded, digits.test_labels) > 0.8


def test_latents_have_mean_nought_and_variance_one(digits, tmp_path):
    latents = image_latents(digits, 4, epochs=10, cache=tmp_path, progress=False)
    assert latents.dim == 4 and latents.classes == 10 and latents.image_shape == (8, 8)
    torch.testing.assert_close(latents.train.mean(0), torch.zeros(4), atol=0.2, rtol=0)
    torch.testing.assert_close(latents.train.std(0), torch.ones(4), atol=0.2, rtol=0)
    torch.testing.assert_close(latents.encode(digits.test / 255), latents.test)


def test_gradients_pass_through_decode_and_stop_at_the_weights(few, tmp_path):
    decode = image_latents(few, 3, cache=tmp_path, **QUIET).decode
    point = torch.zeros(3, requires_grad=True)
    decode(point).sum().backward()
    assert float(point.grad.abs().sum()) > 0
    assert not decode(torch.zeros(3)).requires_grad


@pytest.mark.parametrize("make", [image_autoencoder, image_classifier])
def test_what_was_trained_once_comes_back_bit_for_bit(few, tmp_path, no_fit, make):
    first = make(few, cache=tmp_path, **QUIET)
    no_fit()
    again = make(few, cache=tmp_path, **QUIET)
    assert same(first, again)
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_latents_are_encoded_once(few, tmp_path, monkeypatch):
    autoencoder = ConvAutoencoder((8, 8), 3)
    first = latents_of(few, autoencoder, cache=tmp_path)
    assert autoencoder.training and all(p.requires_grad for p in autoencoder.parameters())
    monkeypatch.setattr(ConvAutoencoder, "encode", lambda *_: pytest.fail("encoded"))
    again = latents_of(few, autoencoder, cache=tmp_path)
    assert torch.equal(first.train, again.train) and torch.equal(first.test, again.test)


@pytest.mark.parametrize("make", [image_autoencoder, image_classifier])
def test_a_seed_decides_everything_and_the_global_random_state_stays(few, tmp_path, make):
    before = torch.get_rng_state()
    first = make(few, cache=tmp_path / "one", **QUIET)
    with torch.no_grad():
        again = make(few, cache=tmp_path / "two", **QUIET)
        assert not torch.is_grad_enabled()
    other = make(few, cache=tmp_path / "one", seed=1, **QUIET)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize("make", [image_autoencoder, image_classifier])
def test_another_default_dtype_changes_no_dtype_here(few, tmp_path, make):
    torch.set_default_dtype(torch.float64)
    try:
        network = make(few, cache=tmp_path, **QUIET)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_of_two_that_ask_at_once_one_makes(tmp_path):
    made = []
    both = threading.Barrier(2)

    def make() -> dict[str, torch.Tensor]:
        made.append(len(made))
        return {"number": torch.tensor(len(made))}

    def ask(_: int) -> int:
        both.wait()
        return int(cached("number", "key", tmp_path, make)["number"])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, range(2))) == [1, 1]
    assert made == [0]


def changed(part: torch.Tensor) -> torch.Tensor:
    part = part.clone()
    part.view(-1)[0] = (part.view(-1)[0] + 1) % 10
    return part


@pytest.mark.parametrize("name", ["train", "train_labels"])
def test_one_other_byte_of_the_data_is_another_key(few, tmp_path, no_fit, name):
    image_classifier(few, cache=tmp_path, **QUIET)
    no_fit()
    fewer = {"test": few.test[:1], "test_labels": few.test_labels[:1]}
    image_classifier(dataclasses.replace(few, **fewer), cache=tmp_path, **QUIET)
    with pytest.raises(pytest.fail.Exception, match="trained"):
        other = dataclasses.replace(few, **{name: changed(getattr(few, name))})
        image_classifier(other, cache=tmp_path, **QUIET)


@pytest.mark.parametrize("other", [{"epochs": 2}, {"seed": 1}, {"dim": 3}, {"class_weight": 0.5}])
def test_other_settings_are_another_key(few, tmp_path, no_fit, other):
    image_autoencoder(few, cache=tmp_path, **QUIET)
    no_fit()
    with pytest.raises(pytest.fail.Exception, match="trained"):
        image_autoencoder(few, cache=tmp_path, **{**QUIET, **other})


def test_another_version_is_another_key(few, tmp_path, no_fit, monkeypatch):
    image_autoencoder(few, cache=tmp_path, **QUIET)
    no_fit()
    monkeypatch.setattr(trained, "VERSION", trained.VERSION + 1)
    with pytest.raises(pytest.fail.Exception, match="trained"):
        image_autoencoder(few, cache=tmp_path, **QUIET)


def flip(path):
    """Changes one bit of a weight; safetensors does not see it."""
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: save_file(load_file(path), path),  # a file of somebody else's
    ],
    ids=["flipped", "cut", "empty", "foreign"],
)
def test_a_damaged_file_is_reported_and_made_anew(few, tmp_path, no_fit, damage):
    first = image_classifier(few, cache=tmp_path, **QUIET)
    (path,) = tmp_path.glob("*.safetensors")
    damage(path)
    with pytest.warns(RuntimeWarning, match=f"{path.name} is damaged"):
        again = image_classifier(few, cache=tmp_path, **QUIET)
    assert same(first, again)
    no_fit()
    assert same(first, image_classifier(few, cache=tmp_path, **QUIET))


def test_where_things_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KEODRIFT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.delenv("KEODRIFT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "keodrift"


def test_a_diverged_training_keeps_nothing(few, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageClassifier, "loss", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(DivergedError, match="at step 0"):
        image_classifier(few, cache=tmp_path, **QUIET)
    assert not list(tmp_path.glob("*.safetensors"))


def test_settings_build_one_alike():
    for network in (ConvAutoencoder((8, 12), 3, seed=2), ImageClassifier((8, 4), 3, seed=2)):
        assert same(network, type(network)(**network.settings))


def test_what_is_refused(few, tmp_path):
    with pytest.raises(ShapeError, match="image_shape: got"):
        ConvAutoencoder((28, 30))
    with pytest.raises(ShapeError, match="image_shape: got"):
        ImageClassifier((2, 4))
    with pytest.raises(OptionError, match="dim: got 0"):
        ConvAutoencoder(dim=0)
    with pytest.raises(OptionError, match="noise: got -1"):
        ConvAutoencoder(noise=-1.0)
    with pytest.raises(OptionError, match="epochs: got 0"):
        image_classifier(few, epochs=0, cache=tmp_path)
    network = ImageClassifier((8, 8))
    with pytest.raises(ShapeError, match="images: got"):
        network(torch.zeros(2, 8, 4))
    with pytest.raises(ShapeError, match="latents: got"):
        ConvAutoencoder().decode(torch.zeros(2, 5))
    with pytest.raises(ShapeError, match="labels: got"):
        fit(network, few.train, few.train_labels[:-1], epochs=1)
    with pytest.raises(DtypeError, match="labels: got torch.float32"):
        fit(network, few.train, few.train_labels.float(), epochs=1)
    with pytest.raises(DtypeError, match="images: got torch.int64"):
        fit(network, few.train.long(), few.train_labels, epochs=1)
    with pytest.raises(ShapeError, match="labels: got"):
        accuracy(network, few.train[:0], few.train_labels[:0])
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        image_classifier(few, cache=tmp_path / "file", **QUIET)


def test_what_is_kept_in_a_folder_that_is_read_only_is_read(tmp_path, monkeypatch):
    made = cached("x", "key", tmp_path, lambda: {"x": torch.ones(2)})

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr("keodrift.vision.cached.FileLock", refuse)
    assert torch.equal(cached("x", "key", tmp_path, dict)["x"], made["x"])
