"""Networks that are kept: the same samples in another process, or an error that says why not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import keodrift as kd
from keodrift.errors import ArgumentError, OptionError, RunError
from keodrift.networks import MLP, ConditionalMLP, ResidualMLP, sample

NETWORKS = {
    "mlp": MLP(width=8, seed=3),
    "residual": ResidualMLP(width=8, blocks=1, output_std=0.5, seed=3),
    "conditional": ConditionalMLP(width=8, guidance_dim=4, seed=3),
}


class Linear(nn.Module):
    def __init__(self, noise_dim: int = 2) -> None:
        super().__init__()
        self.noise_dim, self.settings = noise_dim, {"noise_dim": noise_dim}
        self.map = nn.Linear(noise_dim, 2)

    def forward(self, noise):
        return self.map(noise)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_with_its_weights(tmp_path, name):
    network, path = NETWORKS[name], tmp_path / "network.safetensors"
    with torch.no_grad():
        next(network.parameters()).add_(1)
    kd.save_network(network, path, about={"data": "none"})
    random = torch.get_rng_state()
    loaded = kd.load_network(path)
    assert torch.equal(torch.get_rng_state(), random)
    assert type(loaded) is type(network) and loaded.settings == network.settings
    assert not loaded.training
    for one, other in zip(loaded.parameters(), network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_process_draws_the_same_samples_of_classes_and_strengths(tmp_path):
    network, path = NETWORKS["conditional"], tmp_path / "network.safetensors"
    kd.save_network(network, path)
    script = """
import sys, torch, keodrift as kd
from keodrift.networks import sample
network = kd.load_network(sys.argv[1])
labels = torch.arange(10)
points = sample(network, 10, torch.Generator().manual_seed(0), labels=labels, omega=2.0)
torch.save(points, sys.argv[2])
"""
    out = tmp_path / "points.pt"
    subprocess.run([sys.executable, "-c", script, str(path), str(out)], check=True, timeout=120)
    points = torch.load(out, weights_only=True)
    labels = torch.arange(10)
    assert torch.equal(points, sample(network, 10, seeded(), labels=labels, omega=2.0))
    assert not torch.equal(points, sample(network, 10, seeded(), labels=labels))


def test_strengths_are_for_networks_that_take_them():
    network, labels = NETWORKS["conditional"], torch.arange(3)
    each = sample(network, 3, seeded(), labels=labels, omega=torch.tensor([1.0, 2.0, 3.0]))
    one = sample(network, 3, seeded(), labels=labels, omega=1.0)
    assert torch.equal(each[0], one[0]) and not torch.equal(each[2], one[2])
    assert torch.equal(one, sample(network, 3, seeded(), labels=labels))
    for omega in (0.5, torch.ones(2)):
        with pytest.raises(ArgumentError, match="omega"):
            sample(network, 3, seeded(), labels=labels, omega=omega)
    with pytest.raises(OptionError, match="without guidance"):
        sample(NETWORKS["mlp"], 3, seeded(), omega=2.0)


def test_a_network_of_ones_own_is_named_by_the_reader(tmp_path):
    path = tmp_path / "network.safetensors"
    kd.save_network(Linear(), path)
    with pytest.raises(OptionError, match="a Linear in .*classes="):
        kd.load_network(path)
    assert isinstance(kd.load_network(path, classes=[Linear]), Linear)


def test_what_cannot_be_kept_or_read_is_refused(tmp_path):
    path = tmp_path / "network.safetensors"
    with pytest.raises(ArgumentError, match="^network: got Linear.*settings"):
        kd.save_network(nn.Linear(2, 2), path)
    odd = Linear()
    odd.settings = {"noise_dim": object()}
    with pytest.raises(ArgumentError, match="JSON"):
        kd.save_network(odd, path)
    assert not path.exists()
    path.write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"network\.safetensors"):
        kd.load_network(path)
    other = Linear()
    other.settings = {"noise_dim": 5}
    kd.save_network(other, path)
    with pytest.raises(ArgumentError, match="a Linear of this version"):
        kd.load_network(path, classes=[Linear])


class Tied(Linear):
    def __init__(self, noise_dim: int = 2) -> None:
        super().__init__(noise_dim)
        self.again = nn.Linear(noise_dim, 2)
        self.again.weight = self.map.weight


def test_weights_that_two_layers_share_are_kept(tmp_path):
    network, path = Tied(), tmp_path / "network.safetensors"
    kd.save_network(network, path)
    back = kd.load_network(path, classes=[Tied])
    assert back.again.weight is back.map.weight and torch.equal(back.map.weight, network.map.weight)


def test_a_compiled_network_is_kept_as_what_was_compiled(tmp_path):
    network = MLP(width=8)
    kd.save_network(torch.compile(network), tmp_path / "network.safetensors")
    found = kd.load_network(tmp_path / "network.safetensors")
    assert type(found) is MLP
    assert torch.equal(found.layers[0].weight, network.layers[0].weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_keep_their_dtype(tmp_path, dtype):
    network = MLP(width=8).to(dtype)
    kd.save_network(network, tmp_path / "network.safetensors")
    found = kd.load_network(tmp_path / "network.safetensors").layers[0].weight
    assert found.dtype == dtype
    assert torch.equal(found, network.layers[0].weight)
    points = sample(kd.load_network(tmp_path / "network.safetensors"), 5, torch.Generator())
    assert points.dtype == dtype and bool(points.isfinite().all())
