"""Everything public on a device of its own: nothing meets the CPU, and the host reads little."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from pretend import DEVICE, Elsewhere, Generator, Pretend
from torch import Tensor

import keodrift as kd
from keodrift import metrics
from keodrift.data import Latents, get_target
from keodrift.networks import MLP, ConditionalMLP, draw_noise, sample
from keodrift.reductions import ENGINES, Cells, Tiled, gibbs_kernel
from keodrift.reductions.engines.keops.device import on_keops_stream
from keodrift.reductions.sizes import SIZES
from keodrift.sampling import Pool, Systematic, balanced_normal, neighbour_order
from keodrift.tasks import target_batches
from keodrift.training import Objective, Trainer
from keodrift.transport import EntropicProblem, Sinkhorn, zero
from keodrift.transport.clusters import cluster
from keodrift.vision.classifier import _blurred, _shifted


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """What is compiled for a device cannot be pretended: the tiled engine stands for it."""
    monkeypatch.setitem(ENGINES, "keops", Tiled())
    monkeypatch.setitem(ENGINES, "cells", Cells(otherwise=Tiled()))


@pytest.fixture
def device():
    with Pretend() as device:
        yield device


def seeded(kind: type[torch.Generator], seed: int = 0) -> torch.Generator:
    generator = kind()
    generator.manual_seed(seed)
    return generator


def clouds() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    x, y, u = (torch.randn(n, 2, generator=random) for n in (12, 18, 4))
    a, b, w = (torch.rand(len(z), generator=random) + 0.1 for z in (x, y, u))
    labels = {"k": torch.arange(12) % 2, "m": torch.arange(18) % 2}
    return {"x": x, "y": y + 1, "u": u, "a": a, "b": b, "w": w, **labels}


def given(g) -> dict[str, Tensor]:
    return {"x_weights": g.a, "y_weights": g.b, "negatives": g.u, "negative_weights": g.w}


def distances(x, a, y, b):
    return lambda z: (b * torch.cdist(z, y)).sum(-1) - (a * torch.cdist(z, x)).sum(-1)


def huber(x, y):
    return (1 + ((x - y) ** 2).sum(-1)).sqrt() - 1


def generator_of(x: Tensor) -> torch.Generator:
    return seeded(Generator if isinstance(x, Elsewhere) else torch.Generator)


DRIFTS = {
    "one-sided": kd.OneSidedDrift(0.5),
    "Euclidean": kd.OneSidedDrift(0.5, cost="euclidean", velocity="gradient"),
    "own cost": kd.OneSidedDrift(0.5, cost=huber, velocity="gradient"),
    "relative": kd.OneSidedDrift(0.1, relative=True),
    "split": kd.TwoSidedDrift(0.5),
    "joint": kd.TwoSidedDrift(0.5, form="joint"),
    "floor": kd.TwoSidedDrift(0.5, form="joint", floor=1e-3),
    "proxy": kd.SinkhornProxyDrift(0.5, population_scaling=True),
    "Sinkhorn": kd.SinkhornDrift(0.5),
    "Sinkhorn, steps": kd.SinkhornDrift(0.5, half_steps=5),
    "Sinkhorn, reach": kd.SinkhornDrift(0.5, reach=3.0, masses="gradient"),
    "Sinkhorn, drift_tol": kd.SinkhornDrift(0.5, drift_tol=0.1),
    "KL": kd.KLDrift(0.5),
    "KL, flow": kd.KLDrift(0.5, form="flow"),
    "MMD": kd.MMDDrift(1.0),
    "energy": kd.MMDDrift(kernel="energy"),
    "sliced": kd.SlicedWassersteinDrift(4),
    "orthogonal": kd.SlicedWassersteinDrift(4, orthogonal=True),
    "KALE": kd.KALEDrift(0.5),
    "chi-square": kd.ChiSquareDrift(0.5),
    "witness": kd.WitnessDrift(distances),
    "critic": kd.CriticDrift(steps=2, penalty="gradient"),
}
SINKHORN = DRIFTS["Sinkhorn"]


def divergence_slope(g):
    x = g.x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(kd.sinkhorn_divergence(x, g.y, 0.5), x)
    return slope


def loss_slope(g):
    x = g.x.clone().requires_grad_()
    drifts = [SINKHORN, kd.OneSidedDrift(0.1)]
    loss = kd.drift_loss(x, g.y, drifts, normalize=True, scale_features=True, negatives=g.u)
    (slope,) = torch.autograd.grad(loss, x)
    return slope


def fresh_directions(g):
    return kd.SlicedWassersteinDrift(4, generator=generator_of(g.x))(g.x, g.y)


def trained(g):
    generator = generator_of(g.x)
    network = MLP(width=8).to(g.x.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    batches = target_batches(network, get_target("eight_gaussians"), 16)
    Trainer(network, batches, Objective(SINKHORN), optimizer, generator).run(2)
    return sample(network, 5, generator)


def conditional(g):
    network = ConditionalMLP(classes=2, width=8).to(g.x.device)
    return sample(network, len(g.k), generator_of(g.x), labels=g.k)


CALLS: dict[str, Callable] = {
    "labels": lambda g: SINKHORN(g.x, g.y, x_labels=g.k, y_labels=g.m, negatives=g.u),
    "labels at points": lambda g: SINKHORN.fit(g.x, g.y, x_labels=g.k, y_labels=g.m)(g.y, g.m),
    "other draws": lambda g: SINKHORN(g.x, g.y, model=g.u, model_weights=g.w),
    "start": lambda g: SINKHORN(g.x, g.y, start=SINKHORN.fit(g.x + 0.01, g.y)),
    "batch": lambda g: SINKHORN(g.x.reshape(2, 6, 2), g.y.reshape(2, 9, 2)),
    "half precision": lambda g: SINKHORN(g.x.half(), g.y.half()),
    "elsewhere in space": lambda g: SINKHORN.fit(g.x, g.y)(g.u),
    "marginal error": lambda g: SINKHORN.fit(g.x, g.y).marginal_error,
    "fresh directions": fresh_directions,
    "divergence": lambda g: kd.sinkhorn_divergence(g.x, g.y, 0.5, x_weights=g.a, reach=2.0),
    "divergence slope": divergence_slope,
    "loss slope": loss_slope,
    "flow": lambda g: kd.simulate(SINKHORN, g.x, g.y, 0.5, 3).final,
    "curl": lambda g: kd.curl(SINKHORN.fit(g.x, g.y), g.u),
    "expansion": lambda g: kd.expansion(SINKHORN.fit(g.x, g.y), g.u),
    "jacobian": lambda g: kd.jacobian(SINKHORN.fit(g.x, g.y), g.u),
    "dissipation": lambda g: (
        kd.dissipation(
            lambda x: kd.sinkhorn_divergence(x, g.y, 0.5), kd.simulate(SINKHORN, g.x, g.y, 0.5, 2)
        ).values
    ),
    "diagnose": lambda g: [v.value for v in kd.diagnose(SINKHORN, g.x, g.y).verdicts],
    "self share": lambda g: kd.self_share(SINKHORN.fit(g.x, g.y)),
    "neighbours": lambda g: kd.effective_neighbours(SINKHORN.fit(g.x, g.y)),
    "neighbours, own cost": lambda g: kd.effective_neighbours(
        kd.OneSidedDrift(0.5, cost=huber, relative=True).fit(g.x, g.y)
    ),
    "temperature": lambda g: kd.tau_for_neighbours(kd.OneSidedDrift(1.0), g.x, g.y, 4.0),
    "reach": lambda g: kd.reach_for_gaps(g.y),
    "bandwidth": lambda g: kd.silverman_bandwidth(g.y),
    "W₂²": lambda g: metrics.wasserstein_squared(g.x, g.y),
    "W₂², by class": lambda g: list(metrics.class_wasserstein_squared(g.x, g.k, g.y, g.m).values()),
    "Fréchet": lambda g: metrics.frechet_distance(g.x, g.y),
    "median": lambda g: metrics.median_distance(g.x, g.y),
    "MMD²": lambda g: metrics.mmd_squared(g.x, g.y, 1.0),
    "energy": lambda g: metrics.energy_distance(g.x, g.y),
    "coverage": lambda g: metrics.mode_coverage(g.x, g.u, 1.0).masses,
    "subsample": lambda g: metrics.subsample(g.y, 5, generator_of(g.y)),
    "two-sample test": lambda g: metrics.nearest_neighbour_test(g.x, g.y),
    "variance": lambda g: metrics.variance_ratio(g.x, g.y),
    "balanced noise": lambda g: balanced_normal(8, 2, generator_of(g.x)),
    "order": lambda g: neighbour_order(g.y),
    "latents": lambda g: Latents.from_arrays(g.y, g.m).draw(3, generator_of(g.y)),
    "even data": lambda g: Systematic(g.m).draw(4, generator_of(g.y)),
    "pool": lambda g: Pool(lambda n, r: torch.rand(n, 2, generator=r), 8).draw(
        4, generator_of(g.y)
    ),
    "noise": lambda g: draw_noise(MLP(width=8), 8, generator_of(g.x)),
    "training": trained,
    "conditional": conditional,
}


CALLS |= {f"{k} drift": lambda g, d=d: d(g.x, g.y, **given(g)) for k, d in DRIFTS.items()}


def same(found, expected, name: str, place: torch.device | None = DEVICE) -> None:
    if isinstance(expected, Tensor):
        assert place is None or found.device == place, f"{name} came out on {found.device}"
        assert found.dtype == expected.dtype and found.shape == expected.shape
        raw = found.raw if isinstance(found, Elsewhere) else found
        torch.testing.assert_close(raw, expected, rtol=2e-3, atol=2e-3)
    elif isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            same(one, other, name, place)
    else:
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_calls_stay_on_the_device_of_their_clouds(name, device):
    torch.manual_seed(0)
    expected = CALLS[name](SimpleNamespace(**clouds()))
    torch.manual_seed(0)
    there = SimpleNamespace(**{key: z.to(DEVICE) for key, z in clouds().items()})
    same(CALLS[name](there), expected, name)


@pytest.mark.parametrize("engine", ["dense", "tiled", "cells"])
@pytest.mark.parametrize("verb", ["log_mass", "barycentre", "mean_cost_gradient"])
def test_engines_answer_on_another_device_as_on_the_cpu(engine, verb, device):
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 1, generator=random) for n in (3000, 2000))
    bias = torch.randn(2000, generator=random).double()
    exact = gibbs_kernel(x.double(), y.double(), "half_squared", 0.01, backend="dense")
    kernel = gibbs_kernel(x.to(DEVICE), y.to(DEVICE), "half_squared", 0.01, backend=engine)
    found, expected = getattr(kernel, verb)(bias.to(DEVICE)), getattr(exact, verb)(bias)
    assert found.device == DEVICE
    torch.testing.assert_close(found.raw.double(), expected, rtol=1e-4, atol=1e-4)


def test_clusters_are_found_region_by_region_on_the_device(device, monkeypatch):
    monkeypatch.setitem(SIZES, "cuda", SIZES["cpu"])
    points = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    weights = torch.full((3000,), 1 / 3000, dtype=torch.float64)
    found = cluster(points.to(DEVICE), weights.to(DEVICE), 1500)
    same(found, cluster(points, weights, 1500), "clusters")


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_the_host_reads_twice_a_half_step_of_a_solve(backend, device):
    """Once whether a guess was near, and once on average how the solve stands."""
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(100, 2, generator=random).double().to(DEVICE) for _ in range(2))
    a = torch.full_like(x[:, 0], 0.01)

    def reads(solver: Sinkhorn, solve: Callable) -> int:
        device.reads.clear()
        found = solve(solver, EntropicProblem(x, y, a, a, kd.costs.half_squared, 0.05, backend))
        assert found.half_steps == (solver.half_steps or 1 + solver.max_half_steps)
        return device.reads.total()

    fixed = [reads(Sinkhorn(n), lambda s, p: s.couple(p, zero)) for n in (21, 41)]
    capped = [Sinkhorn(tol=1e-14, max_half_steps=n) for n in (20, 40)]
    solved = [reads(solver, lambda s, p: s.solve(p, zero)) for solver in capped]
    counts = [(more - few) / 20 for few, more in (fixed, solved)]
    print(f"{backend}: the host reads {counts[0]} times a half-step, {counts[1]} where it solves")
    assert counts == [1, 2]


def test_keops_works_on_its_own_stream_and_streams_wait_for_each_other(monkeypatch):
    done = []

    @dataclass(frozen=True)
    class Stream:
        name: str

        def wait_stream(self, other):
            done.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def entered(what):
        done.append(f"in {getattr(what, 'name', what)}")
        yield
        done.append("out")

    side, default = Stream("side"), Stream("default")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: side)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: default)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(Tensor, "record_stream", lambda _, s: done.append(f"kept for {s.name}"))
    found = on_keops_stream(lambda: done.append("call") or torch.ones(1), DEVICE)
    assert torch.equal(found, torch.ones(1))
    expected = ["in cuda:0", "default waits for side", "in default", "call", "out"]
    assert done == [*expected, "side waits for default", "kept for side", "out"]
    done.clear()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: default)
    on_keops_stream(lambda: done.append("call"), DEVICE)
    assert done == ["in cuda:0", "call", "out"]


def test_images_are_shifted_and_blurred_where_they_live(device):
    images = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))

    def augmented(images: Tensor) -> Tensor:
        draws = torch.Generator().manual_seed(1)
        return _blurred(_shifted(images, draws), draws)

    same(augmented(images.to(DEVICE)), augmented(images), "images")
