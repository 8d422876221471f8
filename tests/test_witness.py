"""Drifts of a first variation, given as a function or learnt as a critic."""

from __future__ import annotations

import pickle

import pytest
import reference as ref
import torch
from torch import nn

import keodrift as kd
from keodrift.errors import ArgumentError, DivergedError, OptionError
from keodrift.flow import simulate

TAU = 0.5


def gaussian(z, u):
    return (-(z.unsqueeze(-2) - u.unsqueeze(-3)).square().sum(-1) / (2 * TAU)).exp()


def mmd(x, a, y, b):
    """½MMD² has the first variation E_x k − E_y k."""
    return lambda z: (
        (gaussian(z, x) * a.unsqueeze(-2)).sum(-1) - (gaussian(z, y) * b.unsqueeze(-2)).sum(-1)
    )


def mmd_flow(z, x, a, y, b):
    """V = Σ_j b_j k(z, y_j)(y_j − z)/τ − Σ_i a_i k(z, x_i)(x_i − z)/τ, written out."""

    def pull(u, w):
        kernel = (-ref.pairs(z, u, "half_squared") / TAU).exp() * w / TAU
        return (kernel[..., None] * (u.unsqueeze(-3) - z.unsqueeze(-2))).sum(-2)

    return pull(y, b) - pull(x, a)


def test_the_flow_of_mmd_is_its_closed_form(cloud):
    x, y, u, z = cloud(0, 9, 2) + 1, cloud(1, 12, 2), cloud(4, 7, 2), cloud(5, 4, 2)
    a, b = cloud(2, 9).exp(), cloud(3, 12).exp()
    a[2] = 0
    field = kd.WitnessDrift(mmd).fit(x, y, x_weights=a, y_weights=b)
    rest = (x, a / a.sum(), y, b / b.sum())
    torch.testing.assert_close(field(), mmd_flow(x, *rest), rtol=0, atol=1e-14)
    torch.testing.assert_close(field(z), mmd_flow(z, *rest), rtol=0, atol=1e-14)
    torch.testing.assert_close(field.witness(z), mmd(*rest)(z), rtol=0, atol=0)
    other = kd.WitnessDrift(mmd).fit(x, y, model=u)  # other draws are the model then
    torch.testing.assert_close(other(z), kd.WitnessDrift(mmd).fit(u, y)(z), rtol=0, atol=1e-14)


def test_a_witness_field_is_a_differentiable_gradient(cloud):
    field = kd.WitnessDrift(mmd).fit(cloud(0, 9, 2) + 1, cloud(1, 12, 2))
    z = cloud(2, 1, 2)
    jacobian = torch.autograd.functional.jacobian(lambda q: field(q)[0], z)[:, 0]
    torch.testing.assert_close(jacobian, jacobian.mT, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(field, (z.requires_grad_(),), eps=1e-6, atol=1e-6)
    assert not field().requires_grad and field(z).requires_grad
    with torch.no_grad():
        assert not field(z).requires_grad


def test_batches_and_classes_are_problems_of_their_own(cloud):
    x, y = cloud(0, 2, 9, 2), cloud(1, 2, 12, 2)
    drift = kd.WitnessDrift(mmd)
    alone = torch.stack([drift(x[k], y[k]) for k in range(2)])
    torch.testing.assert_close(drift(x, y), alone, rtol=0, atol=1e-14)
    labels = [torch.arange(2).repeat_interleave(n) for n in (9, 12)]
    flat = drift(x.flatten(0, 1), y.flatten(0, 1), x_labels=labels[0], y_labels=labels[1])
    torch.testing.assert_close(flat, alone.flatten(0, 1), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "wrong",
    [
        "mmd",
        lambda x, a, y, b: x,
        lambda x, a, y, b: lambda z: 1.0,
        lambda x, a, y, b: lambda z: z,
        lambda x, a, y, b: lambda z: z.detach().sum(-1),
    ],
    ids=["a word", "no function", "no tensor", "no number a point", "no graph"],
)
def test_what_is_no_first_variation_is_refused(cloud, wrong):
    with pytest.raises(OptionError, match="first_variation"):
        kd.WitnessDrift(wrong)(cloud(0, 4, 2), cloud(1, 5, 2))


DIVERGENCES = ["kl", "reverse_kl", "jensen_shannon"]
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


class _Ratio(nn.Module):
    """log q/p of q = N(m, 1) and p = N(0, 1), from which no step leads away when lr is tiny."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.full((d,), 1.0))

    def forward(self, z):
        return (z * self.mean - self.mean.square() / 2).sum(-1, keepdim=True)


# First variations φ′(u) in words of u = q/p, and the divergences of N(1, 1) from N(0, 1).
SLOPES = {
    "kl": lambda u: u.log(),
    "reverse_kl": lambda u: 1 - 1 / u,
    "jensen_shannon": lambda u: (2 * u / (1 + u)).log() / 2,
}
VALUES = {"kl": 0.5, "reverse_kl": 0.5, "jensen_shannon": 0.1115}


@every_divergence
def test_at_the_true_ratio_the_bound_is_the_divergence(divergence):
    grid = torch.linspace(-9, 10, 4001, dtype=torch.float64)[:, None]
    q, p = (torch.exp(-((grid[:, 0] - m) ** 2) / 2) for m in (1, 0))
    drift = kd.CriticDrift(divergence, network=_Ratio, steps=1, lr=1e-12)
    field = drift.fit(grid, grid, x_weights=q, y_weights=p)
    mixed = (q + p) / 2
    exact = {
        "kl": (q * (q / p).log()).sum() / q.sum(),
        "reverse_kl": (p * (p / q).log()).sum() / p.sum(),
        "jensen_shannon": sum((w * (w / mixed).log()).sum() / w.sum() for w in (p, q)) / 2,
    }[divergence]
    torch.testing.assert_close(field.bound, exact, rtol=1e-8, atol=0)
    assert float(exact) == pytest.approx(VALUES[divergence], rel=1e-3)
    z = torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64, requires_grad=True)
    witness = SLOPES[divergence]((z[:, 0] - 0.5).exp())
    torch.testing.assert_close(field.witness(z), witness, rtol=0, atol=1e-10)
    (slope,) = torch.autograd.grad(witness.sum(), z)
    torch.testing.assert_close(field(z), -slope, rtol=0, atol=1e-10)


@pytest.fixture
def apart(cloud):
    f32 = torch.float32
    return 0.5 * cloud(0, 60, 2, dtype=f32) - 1, cloud(1, 60, 2, dtype=f32)


@every_divergence
def test_a_critic_pulls_one_gaussian_to_another(apart, divergence):
    x, y = apart
    drift = kd.CriticDrift(divergence, penalty="gradient", weight=0.3, lr=5e-3)
    end = simulate(drift, x, y, 0.1, 80).final

    def mmd_squared(q):
        return gaussian(q, q).mean() + gaussian(y, y).mean() - 2 * gaussian(q, y).mean()

    assert float(mmd_squared(end)) < 0.3 * float(mmd_squared(x))
    first, again = (simulate(drift, x, y, 0.1, 5).final for _ in range(2))
    assert torch.equal(first, again)


def test_state_is_carried_by_the_field_alone(apart):
    x, y = apart
    drift = kd.CriticDrift()
    first = drift.fit(x, y)
    before, bound = first(), first.bound
    second = drift.fit(x, y, start=first)
    assert torch.equal(first(), before)  # a later fit trains copies
    assert torch.equal(drift.fit(x, y)(), before)  # and the recipe remembers nothing
    assert float(second.bound) > float(bound)
    # Two fits of 10 steps are one of 20, bit for bit: the optimiser goes on as well.
    assert torch.equal(second(), kd.CriticDrift(steps=20).fit(x, y)())
    copy = pickle.loads(pickle.dumps(first))
    assert torch.equal(drift.fit(x, y, start=copy)(), second())
    assert not torch.equal(kd.CriticDrift(seed=1)(x, y), before)


def test_penalties_keep_the_critic_smooth(apart):
    x, y = apart
    x = x - 4
    steep = {}
    for penalty in (None, "spectral", "gradient"):
        field = kd.CriticDrift(penalty=penalty, steps=200, lr=1e-2, weight=10).fit(x, y)
        steep[penalty] = float(field().norm(dim=-1).max())  # the witness of KL is v itself
    assert steep["spectral"] <= 1 < steep[None]
    assert steep["gradient"] < steep[None]


def test_critics_of_a_batch_and_of_classes_are_those_alone(apart):
    x, y = (torch.stack([z, z + 1]) for z in apart)
    drift = kd.CriticDrift()
    field = drift.fit(x, y)
    alone = [drift.fit(x[k], y[k]) for k in range(2)]
    assert torch.equal(field(), torch.stack([one() for one in alone]))
    further = drift.fit(x, y, start=field)
    assert torch.equal(further()[1], drift.fit(x[1], y[1], start=alone[1])())
    labels = {f"{name}_labels": torch.arange(2).repeat_interleave(60) for name in "xy"}
    by_class = drift.fit(x.flatten(0, 1), y.flatten(0, 1), **labels)
    assert torch.equal(by_class(), field().flatten(0, 1))


def test_the_precision_of_networks_does_not_reach_the_critic(apart):
    expected = kd.CriticDrift()(*apart)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kd.CriticDrift()(*apart), expected)


def test_nonsense_is_refused(apart):
    for wrong in (
        {"divergence": "total"},
        {"steps": 0},
        {"lr": -1.0},
        {"penalty": "none"},
        {"weight": 0.0},
        {"network": "mlp"},
    ):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            kd.CriticDrift(**wrong)
    for network in (lambda d: "no module", lambda d: nn.Linear(d, 2)):
        with pytest.raises(OptionError, match="network"):
            kd.CriticDrift(network=network)(*apart)
    with pytest.raises(DivergedError, match="critic"):
        kd.CriticDrift(lr=1e6)(*apart)


def test_a_network_that_is_handed_out_twice_stays_as_it_is(cloud):
    x, y = cloud(0, 20, 2).float(), cloud(1, 20, 2).float() + 1
    net = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1))
    before = [p.clone() for p in net.parameters()]
    drift = kd.CriticDrift(network=lambda d: net, steps=5)
    field = drift.fit(x, y)
    first = field()
    assert torch.equal(drift.fit(x, y)(), first) and torch.equal(field(), first)
    assert all(p.requires_grad for p in net.parameters())
    assert all(map(torch.equal, before, net.parameters()))


def test_a_critic_with_dropout_is_a_function(cloud):
    x, y = cloud(0, 20, 2).float(), cloud(1, 20, 2).float() + 1

    def network(d):
        return nn.Sequential(nn.Linear(d, 16), nn.Softplus(), nn.Dropout(0.3), nn.Linear(16, 1))

    drift = kd.CriticDrift(network=network, steps=5)
    before = torch.get_rng_state()
    field = drift.fit(x, y)
    assert torch.equal(field(), field())
    one, other = (drift.fit(x, y, start=field) for _ in range(2))
    assert torch.equal(one(), other()) and not torch.equal(one(), field())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", ["a", 2.5, -1, True])
def test_a_seed_is_checked_when_it_is_given(seed):
    with pytest.raises(OptionError, match="^seed"):
        kd.CriticDrift(seed=seed)


@pytest.mark.parametrize(("divergence", "which"), [("kl", "y"), ("reverse_kl", "x")])
def test_a_point_without_weight_may_be_anywhere(cloud, divergence, which):
    clouds = {"x": cloud(0, 12, 2), "y": cloud(1, 14, 2)}
    drift = kd.CriticDrift(divergence, steps=3)
    expected = drift(**clouds)
    far = torch.full((1, 2), -1e3)
    padded = clouds | {which: torch.cat([clouds[which], far])}
    weights = torch.ones(len(padded[which]))
    weights[-1] = 0
    found = drift(**padded, **{f"{which}_weights": weights})
    torch.testing.assert_close(found[:12], expected)
