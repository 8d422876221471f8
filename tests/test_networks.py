"""Networks: shapes, seeds, sampling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from keodrift.errors import ArgumentError, DtypeError, OptionError, ShapeError
from keodrift.networks import MLP, ConditionalMLP, ResidualMLP, draw_noise, sample


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", [MLP, ResidualMLP, ConditionalMLP])
def test_seed_decides_the_weights_and_the_global_state_stays(make):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = make(seed=1).state_dict()
    torch.manual_seed(6)
    again, other = make(seed=1).state_dict(), make(seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    torch.manual_seed(5)
    make()
    assert torch.equal(state, torch.get_rng_state())


def test_residual_mlp_starts_from_a_tight_cloud_and_every_weight_learns():
    network = ResidualMLP(width=32, blocks=2)
    cloud = network(torch.randn(200, 16, generator=seeded()))
    assert cloud.shape == (200, 2)
    assert cloud.abs().max() < 0.05
    cloud.sum().backward()
    assert all(bool((weight.grad != 0).any()) for weight in network.parameters())


def test_residual_block_is_the_identity_plus_a_scaled_part():
    from keodrift.networks import _Block

    block = _Block(8, 0.9)
    x = torch.randn(3, 8, generator=seeded())
    inner = block.leave(nn.functional.silu(block.enter(block.norm(x))))
    assert torch.allclose(block(x), x + 0.9 * inner)


def test_conditional_mlp_depends_on_class_and_on_guidance_only_if_asked():
    noise = torch.randn(4, 6, generator=seeded())
    zeros, ones = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
    plain = ConditionalMLP()
    assert not torch.equal(plain(noise, zeros), plain(noise, ones))
    assert torch.equal(plain(noise, zeros, 1.0), plain(noise, zeros, 3.0))
    guided = ConditionalMLP(guidance_dim=8)
    assert not torch.equal(guided(noise, zeros, 1.0), guided(noise, zeros, 3.0))
    each = torch.tensor([1.0, 3.0, 1.0, 3.0])
    mixed = guided(noise, zeros, each)
    assert torch.allclose(mixed[1], guided(noise, zeros, 3.0)[1])
    assert torch.allclose(mixed[2], guided(noise, zeros)[2])


def test_sample_is_deterministic_has_no_graph_and_restores_the_mode():
    network = nn.Sequential(MLP(), nn.Dropout(0.5))
    network.noise_dim = 2
    network.train()
    first = sample(network, 10, seeded())
    assert torch.equal(first, sample(network, 10, seeded()))
    assert not first.requires_grad
    assert network.training
    assert torch.is_grad_enabled()


def test_sample_in_parts_equals_sample_at_once():
    network, labels = ConditionalMLP(), torch.arange(10).repeat(3)
    whole = sample(network, 30, seeded(), labels=labels)
    parts = sample(network, 30, seeded(), labels=labels, batch_size=7)
    assert torch.allclose(whole, parts, atol=1e-6)


@pytest.mark.parametrize("make", [MLP, ResidualMLP, ConditionalMLP])
@pytest.mark.parametrize("argument", ["noise_dim", "dim", "width"])
@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_sizes_are_positive_integers(make, argument, size):
    with pytest.raises(OptionError, match=f"^{argument}: got {size}"):
        make(**{argument: size})


@pytest.mark.parametrize(
    ("error", "labels"),
    [
        (DtypeError, [0, 1, 2]),
        (DtypeError, torch.zeros(3)),
        (ShapeError, torch.zeros(2, dtype=torch.long)),
        (ShapeError, torch.zeros(3, 1, dtype=torch.long)),
        (OptionError, torch.tensor([0, 1, 10])),
        (OptionError, torch.tensor([-1, 0, 1])),
        (OptionError, None),
    ],
)
def test_labels_are_one_known_class_a_sample(error, labels):
    with pytest.raises(error, match="^labels: got"):
        sample(ConditionalMLP(), 3, seeded(), labels=labels)


def test_refusals_name_the_argument():
    with pytest.raises(ArgumentError, match="noise_dim"):
        draw_noise(nn.Linear(2, 2), 3, seeded())
    with pytest.raises(OptionError, match="^batch_size: got 0"):
        sample(MLP(), 3, seeded(), batch_size=0)
    with pytest.raises(ArgumentError, match="^n: got 0"):
        sample(MLP(), 0, seeded())


def test_what_a_network_does_not_take_is_refused():
    with pytest.raises(OptionError, match="^guidance_dim: got -1"):
        ConditionalMLP(guidance_dim=-1)
    with pytest.raises(OptionError, match="^labels: got classes for a MLP"):
        sample(MLP(), 3, torch.Generator(), labels=torch.zeros(3, dtype=torch.long))


def test_sampling_leaves_the_modes_of_all_layers():
    network = torch.nn.Sequential(MLP(width=8), torch.nn.Dropout(0.5)).train()
    network.noise_dim = 2
    network[1].eval()
    sample(network, 3, torch.Generator().manual_seed(0))
    assert network.training and network[0].training and not network[1].training
