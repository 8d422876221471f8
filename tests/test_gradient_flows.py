"""Proxy, KL, MMD and sliced Wasserstein: what all of them have in common."""

from __future__ import annotations

import pickle

import flow_reference as flows
import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.metrics import wasserstein_squared

TAU = 0.7


RECIPES = {
    "proxy": (lambda **o: kd.SinkhornProxyDrift(TAU, **o), flows.proxy),
    "proxy, scaled": (
        lambda **o: kd.SinkhornProxyDrift(TAU, population_scaling=True, **o),
        lambda p, q=None: flows.proxy(p, q, True),
    ),
    "score": (lambda **o: kd.KLDrift(TAU, **o), flows.score),
    "flow": (lambda **o: kd.KLDrift(TAU, form="flow", samples=8, **o), flows.kl_flow),
    **{
        kernel: (
            lambda kernel=kernel, **o: kd.MMDDrift(
                None if kernel == "energy" else flows.BANDWIDTHS, kernel=kernel, **o
            ),
            lambda p, q=None, kernel=kernel: flows.mmd(p, q, kernel),
        )
        for kernel in flows.KERNELS
    },
    "sliced": (lambda **o: kd.SlicedWassersteinDrift(5, chunk=2, **o), flows.sliced),
}
PAIRWISE = [name for name in RECIPES if name != "sliced"]
every_recipe = pytest.mark.parametrize(("make", "expected"), RECIPES.values(), ids=RECIPES)


def unmasked(name):
    return {"mask_self": False} if name.startswith("proxy") else {}


EVERY_UNMASKED = {name: RECIPES[name][0](**unmasked(name)) for name in RECIPES}
every_unmasked = pytest.mark.parametrize("drift", EVERY_UNMASKED.values(), ids=EVERY_UNMASKED)


def known(field):
    """What a reference has to be told: the numbers that were drawn."""
    if isinstance(field, kd.SoftmaxField) or not hasattr(field, "noise"):
        return {"directions": field.directions} if hasattr(field, "directions") else {}
    return {"noise": field.noise}


@pytest.fixture
def clouds(cloud):
    """Clouds of different sizes, with weights that contain zeros."""
    a, b, w, m = cloud(10, 7).exp(), cloud(11, 10).exp(), cloud(12, 4).exp(), cloud(13, 8).exp()
    a[2], b[0], b[5], w[1], m[4] = 0, 0, 0, 0, 0
    return {
        "x": cloud(0, 7, 3),
        "y": 0.7 * cloud(1, 10, 3) + 0.5,
        "z": 2 * cloud(3, 5, 3),
        "plain": ({}, {}),
        "weights": ({"a": a, "b": b}, {"x_weights": a, "y_weights": b}),
        "negatives": (
            {"u": cloud(2, 4, 3), "w": w},
            {"negatives": cloud(2, 4, 3), "negative_weights": w},
        ),
        "model": (
            {"model": cloud(5, 8, 3), "m": m},
            {"model": cloud(5, 8, 3), "model_weights": m},
        ),
    }


@every_recipe
@pytest.mark.parametrize("extra", ["plain", "weights", "negatives", "model"])
def test_recipe_is_its_formula(clouds, make, expected, extra):
    drift, (short, long) = make(), clouds[extra]
    x, y, z = clouds["x"], clouds["y"], clouds["z"]
    p = ref.problem(x, y, TAU, mask=getattr(drift, "mask_self", False), **short)
    field = drift.fit(x, y, **long)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(field(), expected(p, **known(field)), **close)
    torch.testing.assert_close(field(z), expected(p, z, **known(field)), **close)
    single = {k: v.float() for k, v in long.items()}
    rough = drift.fit(x.float(), y.float(), **single)
    assert rough().dtype == torch.float32
    torch.testing.assert_close(rough().double(), field(), rtol=0, atol=1e-4)
    torch.testing.assert_close(rough(z.float()).double(), field(z), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", PAIRWISE)
def test_tiles_are_the_stored_pairs(clouds, name):
    make, (x, y, z) = RECIPES[name][0], (clouds[k] for k in "xyz")
    stored, tiled = (make(backend=backend).fit(x, y) for backend in ("dense", "tiled"))
    torch.testing.assert_close(tiled(), stored(), rtol=0, atol=1e-12)
    torch.testing.assert_close(tiled(z), stored(z), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("keops")
@pytest.mark.parametrize("name", PAIRWISE)
def test_compiled_reductions_are_the_stored_pairs(cloud, name):
    make, x, y = RECIPES[name][0], cloud(0, 7, 2), cloud(1, 9, 2)
    stored, compiled = (make(backend=backend)(x, y) for backend in ("dense", "keops"))
    torch.testing.assert_close(compiled, stored, rtol=0, atol=1e-10)


@every_unmasked
def test_equal_clouds_are_at_rest_everywhere(cloud, drift):
    x = cloud(3, 12, 2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    field = drift.fit(x, x[order])
    assert float(field().abs().max()) < 1e-13
    assert float(field(2 * cloud(4, 6, 2)).abs().max()) < 1e-12


def test_curl(cloud):
    x, y, z = cloud(0, 9, 2), cloud(1, 12, 2) + 0.5, cloud(2, 1, 2)

    def curl(drift):
        field = drift.fit(x, y)
        jacobian = torch.autograd.functional.jacobian(lambda q: field(q)[0], z)[:, 0]
        return abs(float(jacobian[0, 1] - jacobian[1, 0]))

    for name, drift in EVERY_UNMASKED.items():
        if name.startswith("proxy"):
            assert curl(drift) > 1e-4
        else:
            assert curl(drift) < 1e-13, name


@every_recipe
def test_fields_are_differentiable_anywhere(cloud, make, expected):
    x, y, z = cloud(0, 6, 2), cloud(1, 8, 2) + 1, cloud(2, 4, 2)
    field = make().fit(x, y)
    z.requires_grad_()
    assert torch.autograd.gradcheck(field, (z,), eps=1e-6, atol=1e-6)
    assert not field().requires_grad


@every_unmasked
def test_a_doubled_point_is_a_doubled_weight(cloud, drift):
    if getattr(drift, "population_scaling", True) is False:
        return  # it counts points
    x, y = cloud(0, 6, 2), cloud(1, 8, 2)
    a, b = 0.2 + cloud(2, 6).abs(), 0.2 + cloud(3, 8).abs()
    heavy_a, heavy_b = a.clone(), b.clone()
    heavy_a[0], heavy_b[-1] = 2 * a[0], 2 * b[-1]
    field = drift.fit(x, y, x_weights=heavy_a, y_weights=heavy_b)
    twice = drift.fit(
        torch.cat([x, x[:1]]),
        torch.cat([y, y[-1:]]),
        x_weights=torch.cat([a, a[:1]]),
        y_weights=torch.cat([b, b[-1:]]),
    )
    torch.testing.assert_close(twice(), torch.cat([field(), field()[:1]]), rtol=0, atol=1e-12)
    z = cloud(4, 5, 2)
    torch.testing.assert_close(twice(z), field(z), rtol=0, atol=1e-12)


@every_recipe
def test_labels_and_batch_axes_are_one_call_each(cloud, make, expected):
    x, y, u = cloud(0, 12, 2), cloud(1, 15, 2), cloud(2, 3, 2)
    x_labels, y_labels = torch.arange(12) % 5 % 2, torch.arange(15) % 4 % 2
    drift = make()
    got = drift(x, y, negatives=u, x_labels=x_labels, y_labels=y_labels)
    for k in range(2):
        alone = drift(x[x_labels == k], y[y_labels == k], negatives=u)
        torch.testing.assert_close(got[x_labels == k], alone, rtol=0, atol=1e-12)
    xs, ys, us, b = (
        cloud(3, 2, 3, 6, 2),
        cloud(4, 2, 3, 8, 2),
        cloud(5, 2, 3, 4, 2),
        cloud(6, 2, 3, 8),
    )
    b = b.exp()
    field = drift.fit(xs, ys, negatives=us, y_weights=b)
    z = cloud(7, 2, 3, 5, 2)
    for i, j in ((0, 0), (1, 2)):
        alone = drift.fit(xs[i, j], ys[i, j], negatives=us[i, j], y_weights=b[i, j])
        torch.testing.assert_close(field()[i, j], alone(), rtol=0, atol=1e-12)
        torch.testing.assert_close(field(z)[i, j], alone(z[i, j]), rtol=0, atol=1e-12)


@every_recipe
def test_half_precision_is_computed_in_single(cloud, make, expected):
    x, y, z = (cloud(k, 6, 2, dtype=torch.bfloat16) for k in range(3))
    field, single = make().fit(x, y), make().fit(x.float(), y.float())
    assert torch.equal(field(), single().bfloat16())
    assert torch.equal(field(z), single(z.float()).bfloat16())


@every_recipe
def test_recipes_and_fields_can_be_pickled(cloud, make, expected):
    x, y, drift = cloud(0, 6, 2), cloud(1, 8, 2), make()
    assert torch.equal(pickle.loads(pickle.dumps(drift))(x, y), drift(x, y))
    field = drift.fit(x, y)
    assert torch.equal(pickle.loads(pickle.dumps(field))(), field())


@pytest.mark.parametrize(
    "make",
    [
        lambda g: kd.KLDrift(TAU, form="flow", generator=g),
        lambda g: kd.SlicedWassersteinDrift(8, generator=g),
        lambda g: kd.SlicedWassersteinDrift(8, orthogonal=True, generator=g),
    ],
)
def test_random_draws_come_from_where_they_were_asked_for(cloud, make):
    x, y = cloud(0, 9, 2), cloud(1, 12, 2)
    before = torch.get_rng_state()
    seeded = make(3)
    assert torch.equal(seeded(x, y), seeded(x, y))
    assert not torch.equal(seeded(x, y), make(4)(x, y))
    fresh = make(torch.Generator().manual_seed(3))
    first = fresh(x, y)
    assert torch.equal(first, seeded(x, y)) and not torch.equal(first, fresh(x, y))
    assert torch.equal(torch.get_rng_state(), before)


WIDE = {k: kd.MMDDrift((1.0, 4.0), kernel=k) for k in flows.KERNELS if k != "energy"}


@pytest.mark.parametrize("drift", (EVERY_UNMASKED | WIDE).values(), ids=EVERY_UNMASKED)
def test_particles_reach_the_target(cloud, drift):
    x, y = 0.5 * cloud(0, 60, 2), cloud(1, 60, 2) * torch.tensor([0.3, 1.0])
    y = y + torch.tensor([1.5, 0.0])
    flow = kd.simulate(drift, x, y, 0.2, 60, keep=60)
    before, after = (wasserstein_squared(z, y) for z in (x, flow.final))
    assert after < before / 3  # a discrepancy pulls weakly from where its kernel is small
