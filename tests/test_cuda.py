"""On a CUDA device, ``pytest -m cuda``: engines beside the CPU, memory, training, streams.

Everywhere else this file is skipped as one, and `test_devices` pretends. Formulas compile on first
use, so a first run takes minutes.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import reference as ref
import torch
from test_devices import DRIFTS, clouds, given
from torch import Tensor

import keodrift as kd
from keodrift.data import get_target
from keodrift.networks import MLP, sample
from keodrift.reductions import gibbs_kernel
from keodrift.tasks import target_batches
from keodrift.training import Objective, Trainer

if not torch.cuda.is_available():
    pytest.skip("no CUDA device is there", allow_module_level=True)

# An engine that another one stands in for would be tested under the wrong name.
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("error::keodrift.errors.BackendWarning"),
]
DEVICE = torch.device("cuda", torch.cuda.current_device())
PAIRED = ["dense", "tiled", "keops"]
ERROR = {torch.float32: 2e-4, torch.float64: 1e-8}
MEGABYTE = 1 << 20


def points(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def close(found: Tensor, expected: Tensor, error: float) -> None:
    assert found.device == DEVICE
    torch.testing.assert_close(found.cpu().double(), expected.double(), rtol=error, atol=error)


# Engines.


@pytest.mark.parametrize("engine", PAIRED)
@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
@pytest.mark.parametrize("cost", list(ref.COSTS))
@pytest.mark.parametrize(("d", "batch"), [(2, ()), (20, ()), (70, ()), (3, (2, 2))])
@pytest.mark.parametrize("mask", [False, True], ids=["", "masked"])
def test_engines_beside_float64_on_the_cpu(engine, dtype, cost, d, batch, mask):
    x, y, bias = points(0, *batch, 300, d), points(1, *batch, 400, d) + 0.5, points(2, *batch, 400)
    expression, tau = ref.OWN.get(cost, cost), ref.mean_cost(x, y, cost) / 8
    exact = gibbs_kernel(x, y, expression, tau, mask_self=mask, backend="dense")
    there = (z.to(DEVICE, dtype) for z in (x, y))
    kernel = gibbs_kernel(*there, expression, tau, mask_self=mask, backend=engine)
    mass, b, error = exact.log_mass(bias), bias.to(DEVICE), ERROR[dtype]
    for guess in (None, mass + 1):
        near = None if guess is None else guess.to(DEVICE)
        close(kernel.log_mass(b, near), mass, error)
        close(kernel.barycentre(b, guess=near), exact.barycentre(bias, guess=guess), error)
        found = kernel.mean_cost_gradient(b, near)
        close(found, exact.mean_cost_gradient(bias), 4 * error)
    back = points(3, *batch, 300)
    close(kernel.T.log_mass(back.to(DEVICE)), exact.T.log_mass(back), error)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
def test_cells_beside_float64_on_the_cpu(d, dtype):
    x, y, bias = points(0, 4000, d), points(1, 3000, d), points(2, 3000)
    exact = gibbs_kernel(x, y, "half_squared", 0.02, backend="dense")
    there = (z.to(DEVICE, dtype) for z in (x, y))
    kernel = gibbs_kernel(*there, "half_squared", 0.02, backend="cells")
    close(kernel.log_mass(bias.to(DEVICE)), exact.log_mass(bias), ERROR[dtype])
    close(kernel.barycentre(bias.to(DEVICE)), exact.barycentre(bias), ERROR[dtype])


@pytest.mark.parametrize("engine", PAIRED)
@pytest.mark.parametrize("verb", ["log_mass", "barycentre"])
def test_slopes_in_the_queries(engine, verb):
    def slope(x: Tensor, y: Tensor, bias: Tensor, backend: str) -> Tensor:
        x = x.clone().requires_grad_()
        value = getattr(gibbs_kernel(x, y, "euclidean", 0.5, backend=backend), verb)(bias)
        return torch.autograd.grad(value.square().sum(), x)[0]

    given = points(0, 50, 3), points(1, 60, 3), points(2, 60)
    found = slope(*(z.to(DEVICE) for z in given), engine)
    close(found, slope(*given, "dense"), 1e-7)


@pytest.mark.parametrize("name", DRIFTS)
def test_drifts_beside_the_cpu(name):
    here = {k: z.double() if z.is_floating_point() else z for k, z in clouds().items()}
    there = {k: z.to(DEVICE) for k, z in here.items()}
    both = [SimpleNamespace(**z) for z in (there, here)]
    v, expected = (DRIFTS[name](z.x, z.y, **given(z)) for z in both)
    close(v, expected, 1e-3)  # of two solves to 1e-3


# Size.


@pytest.mark.parametrize(
    ("engine", "n"),
    [("tiled", 10**5), ("keops", 10**5), ("cells", 10**5), ("keops", 10**6), ("cells", 10**6)],
)
@pytest.mark.parametrize("kind", ["one-sided", "Sinkhorn"])
def test_many_particles_take_memory_in_proportion(engine, n, kind):
    x, y = (points(seed, n, 2).float().to(DEVICE) for seed in (0, 1))
    drift = {
        "one-sided": kd.OneSidedDrift(0.1, mask_self=False, backend=engine),
        "Sinkhorn": kd.SinkhornDrift(0.1, half_steps=3, backend=engine),
    }[kind]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    v = drift(x, y)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    print(f"{kind}, {engine}, N = M = {n:,}: {peak / MEGABYTE:,.0f} MiB on the device")
    # Tiles and moments that do not grow, and half a kilobyte a point.
    assert peak <= 2048 * MEGABYTE + 512 * 2 * n
    assert bool(torch.isfinite(v).all())


@pytest.mark.parametrize("engine", ["tiled", "keops", "cells"])
def test_many_particles_beside_float64_on_the_cpu(engine):
    x, y = (points(seed, 10**5, 2) for seed in (0, 1))
    bias = points(2, 10**5)
    there = (z.float().to(DEVICE) for z in (x, y))
    kernel = gibbs_kernel(*there, "half_squared", 0.1, backend=engine)
    found = kernel.log_mass(bias.to(DEVICE))[:50], kernel.barycentre(bias.to(DEVICE))[:50]
    exact = gibbs_kernel(x[:50], y, "half_squared", 0.1, backend="dense")
    for one, other in zip(found, (exact.log_mass(bias), exact.barycentre(bias)), strict=True):
        close(one, other, ERROR[torch.float32])


def test_what_does_not_fit_says_what_would():
    x = torch.zeros(1, 1, device=DEVICE).expand(3_000_000, 1)
    with pytest.raises(kd.errors.OutOfMemoryError, match="GiB are free, enough for some"):
        gibbs_kernel(x, x, backend="dense").log_mass(torch.zeros(3_000_000, device=DEVICE))
    kd.OneSidedDrift(0.5)(x[:9], x[:9])  # and the device can still be used


# Training.


def trainer(folder, steps: int, resume: bool = False) -> Trainer:
    torch.manual_seed(0)
    network = MLP(width=32).to(DEVICE)
    made = Trainer(
        network,
        target_batches(network, get_target("eight_gaussians"), 128),
        Objective(kd.SinkhornDrift(0.2, cost="squared")),
        torch.optim.AdamW(network.parameters(), lr=1e-2),
        seeded(3),
        folder=folder,
        checkpoint_every=10,
    )
    made.run(steps, resume=resume)
    return made


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    straight = trainer(tmp_path / "a", 20)
    trainer(tmp_path / "b", 10)
    resumed = trainer(tmp_path / "b", 20, resume=True)
    for one, other in zip(
        straight.state.network.parameters(), resumed.state.network.parameters(), strict=True
    ):
        assert one.device == DEVICE and torch.equal(one, other)
    assert torch.equal(straight.state.generator.get_state(), resumed.state.generator.get_state())
    assert sample(resumed.average, 7, seeded()).device == DEVICE


# What is left behind.


def state() -> tuple:
    return (
        torch.cuda.current_device(),
        torch.cuda.current_stream(),
        torch.cuda.get_rng_state().tolist(),
        torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cuda"),
        torch.get_default_device(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("name", DRIFTS)
def test_the_process_and_the_device_are_as_they_were(name):
    z = SimpleNamespace(**{k: z.to(DEVICE) for k, z in clouds().items()})
    before = state()
    DRIFTS[name](z.x, z.y, **given(z))
    assert state() == before


@pytest.mark.parametrize("engine", ["dense", "tiled"])
def test_tf32_and_autocast_do_not_reach_inside(engine):
    x, y = (points(seed, 300, 40).float().to(DEVICE) for seed in (0, 1))
    drift = kd.SinkhornDrift(9.0, half_steps=5, backend=engine)
    expected = drift(x, y)
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            found = drift(x, y)
            assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(kept)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("engine", [*PAIRED, "cells"])
def test_streams_do_not_meet(engine):
    """Two streams, on which clouds are not ready yet when a call begins."""
    drift = kd.SinkhornDrift(0.1, half_steps=5, backend=engine)
    x, y = (points(seed, 3000, 2).float().to(DEVICE) for seed in (0, 1))
    expected = [drift(x + shift, y) for shift in (0.0, 1.0)]
    streams = [torch.cuda.Stream() for _ in expected]
    torch.cuda.synchronize()
    found = []
    for shift, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10**8)
            found.append(drift(x + float(shift), y))
            assert torch.cuda.current_stream() == stream
    torch.cuda.synchronize()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_slope_through_keops_on_a_stream():
    x, y = (points(seed, 3000, 2).float().to(DEVICE) for seed in (0, 1))
    bias = torch.zeros(3000, dtype=torch.float64, device=DEVICE)

    def slope() -> Tensor:
        z = (x * 1.0).requires_grad_()
        mass = gibbs_kernel(z, y, "half_squared", 0.5, backend="keops").log_mass(bias)
        return torch.autograd.grad(mass.sum(), z)[0]

    expected = slope()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10**8)
        found = slope()
    torch.cuda.synchronize()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_failure_of_the_device_is_no_change_of_engine(monkeypatch):
    """All that KeOps says is that the device failed; no other engine is asked."""
    from keodrift.reductions.engines.keops import kernel

    def failing(*_):
        raise RuntimeError("[KeOps] Cuda error.")

    x = points(0, 50, 2).float().to(DEVICE)
    keops = gibbs_kernel(x, x, "half_squared", 0.5, backend="keops")
    monkeypatch.setattr(kernel, "on_keops_stream", failing)
    with pytest.raises(kd.errors.EngineError, match="failed on cuda"):
        keops.log_mass(torch.zeros(50, dtype=torch.float64, device=DEVICE))
