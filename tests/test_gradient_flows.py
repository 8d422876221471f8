"""Proxy, KL, MMD and sliced Wasserstein: their formulas in dense form, and known facts."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.errors import ArgumentError, OptionError, TemperatureError
from keodrift.metrics import wasserstein_squared
from keodrift.transport import monotone_shift

F64 = torch.float64
TAU = 0.7
BANDWIDTHS = (0.3, 1.1)


# Dense references: V at points q of a `ref.Problem`.


def proxy(p, q=None, scaling=False, cost="half_squared"):
    n, m = ref.count(p.a), ref.count(p.b)
    drawn = p.c[..., : p.drawn]
    a, b, c = p.a * n, p.b * m, p.c / drawn.sum(-1, keepdim=True) * ref.count(drawn)
    sides = []
    for points, weights, mask, factor in (
        (p.y, b, False, (n / m).sqrt() if scaling else 1.0),
        (p.z, c, p.mask, torch.ones(1)),
    ):
        columns = (ref.log_kernel(p.x, points, cost, p.tau, mask).exp() * a[..., None]).sum(-2)
        at = p.x if q is None else q
        k = ref.log_kernel(at, points, cost, p.tau, mask and q is None).exp()
        rows = (k * weights[..., None, :]).sum(-1, keepdim=True)
        plan = k * weights[..., None, :] / (rows * columns[..., None, :]).sqrt()
        sides.append((plan * (factor if scaling else 1.0), points))
    (plus, y), (minus, z) = sides
    s_plus, s_minus = plus.sum(-1, keepdim=True), minus.sum(-1, keepdim=True)
    return s_minus * (plus @ y) - s_plus * (minus @ z)


def slope(function, q):
    q = q.clone().requires_grad_()
    return torch.autograd.grad(function(q).sum(), q)[0]


def distances(q, points):
    return torch.cdist(q, points, compute_mode="donot_use_mm_for_euclid_dist")


KERNELS = {
    "gaussian": lambda r: (-(r**2) / 2).exp(),
    "laplacian": lambda r: (-r).exp(),
    "imq": lambda r: (1 + r**2) ** -0.5,
    "energy": lambda r: -r,
}


def mmd(p, q=None, kernel="gaussian"):
    """∇ of the witness Σ b k(q, y) − Σ c k(q, z), summed over bandwidths."""
    k = KERNELS[kernel]
    units = (1.0,) if kernel == "energy" else BANDWIDTHS

    def witness(at):
        return sum(
            (
                k(distances(at, p.y) / h) @ p.b[..., None]
                - k(distances(at, p.z) / h) @ p.c[..., None]
            )
            for h in units
        )

    return slope(witness, p.x if q is None else q)


def score(p, q=None):
    """τ (∇log p_τ − ∇log q_τ); without a particle's own density where it is masked."""

    def log_ratio(at):
        mask = p.mask and q is None
        towards = torch.logsumexp(
            -(distances(at, p.y) ** 2) / 2 / p.tau + p.b.log()[..., None, :], -1
        )
        logits = -(distances(at, p.z) ** 2) / 2 / p.tau + p.c.log()[..., None, :]
        if mask:
            own = torch.eye(*logits.shape[-2:], dtype=torch.bool)
            logits = logits.masked_fill(own, -torch.inf)
        return towards - torch.logsumexp(logits, -1)

    return p.tau * slope(log_ratio, p.x if q is None else q)


def kl_flow(p, q=None, noise=None):
    at = p.x if q is None else q
    return sum(score(p, at + n) for n in noise) / len(noise)


def sliced(p, q=None, directions=None):
    """Unbatched. Plans on a line by filling from the left; atoms that coincide share a mean."""
    at = p.x if q is None else q
    total = torch.zeros_like(at)
    for theta in directions:
        t, s = (p.z @ theta).numpy().round(12), (p.y @ theta).numpy()
        i, j, a, b = np.argsort(t), np.argsort(s), p.c.numpy().copy(), p.b.numpy().copy()
        moved, mass = dict.fromkeys(t, 0.0), dict.fromkeys(t, 0.0)
        i, j = [k for k in i if a[k] > 0], [k for k in j if b[k] > 0]
        while i and j:
            step = min(a[i[0]], b[j[0]])
            moved[t[i[0]]] += step * s[j[0]]
            mass[t[i[0]]] += step
            a[i[0]] -= step
            b[j[0]] -= step
            i, j = (i[1:], j) if a[i[0]] <= b[j[0]] else (i, j[1:])
        atoms = sorted(k for k in mass if mass[k] > 0)
        shifts = [moved[k] / mass[k] - k for k in atoms]
        total += torch.from_numpy(np.interp((at @ theta).numpy(), atoms, shifts))[:, None] * theta
    return total / len(directions)


RECIPES = {
    "proxy": (lambda **o: kd.SinkhornProxyDrift(TAU, **o), proxy),
    "proxy, scaled": (
        lambda **o: kd.SinkhornProxyDrift(TAU, population_scaling=True, **o),
        lambda p, q=None: proxy(p, q, True),
    ),
    "score": (lambda **o: kd.KLDrift(TAU, **o), score),
    "flow": (lambda **o: kd.KLDrift(TAU, form="flow", samples=7, **o), kl_flow),
    **{
        kernel: (
            lambda kernel=kernel, **o: kd.MMDDrift(
                None if kernel == "energy" else BANDWIDTHS, kernel=kernel, **o
            ),
            lambda p, q=None, kernel=kernel: mmd(p, q, kernel),
        )
        for kernel in KERNELS
    },
    "sliced": (lambda **o: kd.SlicedWassersteinDrift(5, chunk=2, **o), sliced),
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


@pytest.mark.parametrize("mask", [False, True])
def test_masks_of_proxy_and_score(clouds, mask):
    x, y = clouds["x"], clouds["y"]
    p = ref.problem(x, y, TAU, mask=mask)
    for drift, expected in ((kd.SinkhornProxyDrift, proxy), (kd.KLDrift, score)):
        got = drift(TAU, mask_self=mask)(x, y)
        torch.testing.assert_close(got, expected(p), rtol=0, atol=1e-10)


@pytest.mark.parametrize("cost", ["squared", "euclidean", "student"])
def test_the_proxy_of_any_cost(clouds, cost):
    x, y, z = clouds["x"], clouds["y"], clouds["z"]
    field = kd.SinkhornProxyDrift(TAU, cost=ref.OWN.get(cost, cost)).fit(x, y)
    p = ref.problem(x, y, TAU, mask=True)
    torch.testing.assert_close(field(), proxy(p, cost=cost), rtol=0, atol=1e-10)
    torch.testing.assert_close(field(z), proxy(p, z, cost=cost), rtol=0, atol=1e-10)


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


# What each of them does.


def test_a_lone_masked_particle_has_no_repulsion_of_its_own():
    v = kd.SinkhornProxyDrift(1.0)(torch.zeros(1, 2), torch.ones(3, 2))
    assert torch.isfinite(v).all()


def test_far_modes_are_not_seen_by_proxy_and_score():
    distance, tau, w_p, w_q = 4.0, 1.0, 0.6, 0.3
    kappa = math.exp(-(distance**2) / (2 * tau))
    atoms = torch.tensor([[0.0], [distance]], dtype=F64)
    weights = {
        "x_weights": torch.tensor([w_q, 1 - w_q]),
        "y_weights": torch.tensor([w_p, 1 - w_p]),
    }
    bracket = -distance * kappa * (w_p / (1 - w_p) - w_q / (1 - w_q))
    seen = kd.KLDrift(tau)(atoms, atoms, **weights)[1, 0]
    assert float(seen) == pytest.approx(bracket, rel=10 * kappa)
    proxy = kd.SinkhornProxyDrift(tau, population_scaling=True, mask_self=False)
    seen = proxy(atoms, atoms, **weights)[1, 0]
    assert float(seen) == pytest.approx(math.sqrt((1 - w_p) / w_q) * bracket, rel=10 * kappa)


def test_population_scaling_takes_the_batch_size_out(cloud):
    x, y = cloud(0, 40, 2), cloud(1, 50, 2)
    four = torch.cat([y] * 4)
    plain, scaled = (
        kd.SinkhornProxyDrift(TAU, population_scaling=s, mask_self=False) for s in (False, True)
    )
    torch.testing.assert_close(scaled(x, four), scaled(x, y), rtol=1e-10, atol=0)
    torch.testing.assert_close(plain(x, four), 2 * plain(x, y), rtol=1e-10, atol=0)


@pytest.mark.parametrize("form", ["score", "flow"])
@pytest.mark.parametrize("cost", ["half_squared", "squared"])
def test_masses_of_kl_are_the_scores_or_their_variance_times_them(cloud, form, cost):
    x, y = cloud(0, 2, 9, 2), cloud(1, 2, 12, 2)
    for relative in (False, True):
        how = {"form": form, "relative": relative, "cost": cost}
        scores = kd.KLDrift(TAU, masses="gradient", **how).fit(x, y)
        unit = kd.KLDrift(TAU, **how).fit(x, y)
        base = scores if form == "score" else scores.base
        tau = torch.as_tensor(base.data.tau).reshape(-1, 1, 1)
        variance = tau if cost == "half_squared" else tau / 2
        torch.testing.assert_close(variance * scores(), unit())
        slopes = kd.KLDrift(TAU, masses="gradient", velocity="gradient", **how)
        torch.testing.assert_close(slopes(x, y), scores())
    assert len(tau) == 2


def test_the_score_form_is_the_one_sided_drift(cloud):
    x, y = cloud(0, 9, 2), cloud(1, 12, 2)
    got = kd.KLDrift(TAU, mask_self=True)(x, y)
    torch.testing.assert_close(got, kd.OneSidedDrift(TAU)(x, y), rtol=0, atol=1e-14)


@pytest.mark.parametrize("cost", ["half_squared", "squared"])
def test_the_flow_smooths_the_score_difference(cost):
    """Against quadrature in one dimension, where the two forms differ."""
    x = torch.tensor([[-1.0], [0.4]], dtype=F64)
    y = torch.tensor([[-0.5], [2.0], [2.5]], dtype=F64)
    z = torch.linspace(-2, 3, 11, dtype=F64)[:, None]
    variance = TAU if cost == "half_squared" else TAU / 2
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = torch.from_numpy(weights / weights.sum())
    score = kd.KLDrift(TAU, cost=cost).fit(x, y)
    around = z + math.sqrt(variance) * torch.from_numpy(nodes)
    exact = score(around.reshape(-1, 1)).reshape(around.shape) @ weights
    field = kd.KLDrift(TAU, cost=cost, form="flow", samples=4096).fit(x, y)
    each = score((z + field.noise[:, 0]).reshape(-1, 1)).reshape(len(z), -1)
    error = each.std(-1) / math.sqrt(field.noise.shape[0])
    assert ((field(z)[:, 0] - exact).abs() < 4 * error).all()
    assert ((score(z)[:, 0] - exact).abs() > 4 * error).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_mmd_drift_is_minus_the_gradient_of_half_the_discrepancy(cloud, kernel):
    x, y, k = cloud(0, 9, 2), cloud(1, 12, 2), KERNELS[kernel]
    h = 1.0 if kernel == "energy" else 0.8

    def half_discrepancy(x):
        within, across = k(distances(x, x) / h).mean(), k(distances(x, y) / h).mean()
        return (within - 2 * across) / 2

    v = kd.MMDDrift(None if kernel == "energy" else h, kernel=kernel)(x, y)
    torch.testing.assert_close(v, -len(x) * slope(half_discrepancy, x), rtol=0, atol=1e-13)


def test_the_energy_pulls_from_any_distance(cloud):
    """Exponentials that are all 1 leave the weights exact, in float32 too."""
    x, y = cloud(0, 9, 2), 1e3 * cloud(1, 12, 2)
    for dtype, error in ((F64, 1e-14), (torch.float32, 1e-6)):
        got = kd.MMDDrift(kernel="energy")(x.to(dtype), y.to(dtype)).double()
        p = ref.problem(x.to(dtype), y.to(dtype), 1.0)
        torch.testing.assert_close(got, mmd(p, kernel="energy"), rtol=0, atol=error)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_sliced_translations_go_along_the_mean_of_projections(cloud, orthogonal):
    x, t = cloud(0, 11, 3), torch.tensor([1.0, -2.0, 3.0], dtype=F64)
    field = kd.SlicedWassersteinDrift(6, orthogonal=orthogonal).fit(x, x + t)
    theta = field.directions
    torch.testing.assert_close(theta.norm(dim=-1), torch.ones(6, dtype=F64))
    moved = t / 3 if orthogonal else (theta @ t) @ theta / 6
    z = 5 * cloud(1, 4, 3)
    for v in (field(), field(z)):
        torch.testing.assert_close(v, moved.expand_as(v), rtol=0, atol=1e-13)


def test_sliced_drift_moves_the_mean_by_its_projections(cloud):
    x, y, a = cloud(0, 11, 3), cloud(1, 17, 3) + 1, cloud(2, 11).exp()
    field = kd.SlicedWassersteinDrift(9, orthogonal=True).fit(x, y, x_weights=a)
    a = a / a.sum()
    torch.testing.assert_close(a @ field(), (y.mean(0) - a @ x) / 3, rtol=0, atol=1e-13)


def test_on_a_line_a_step_of_one_is_the_transport(cloud):
    x, y = cloud(0, 50, 1), cloud(1, 50, 1) ** 3
    moved = x + kd.SlicedWassersteinDrift(1)(x, y)
    torch.testing.assert_close(moved.sort(0).values, y.sort(0).values, rtol=0, atol=1e-13)
    assert (moved[x.argsort(0)[:, 0]].diff(dim=0) > 0).all()


def test_a_map_on_a_line_stays_within_its_target(cloud):
    """Weights far below the rounding of their sums."""
    x, y = cloud(0, 200), 10 * cloud(1, 300)
    a = (10 * cloud(2, 200)).exp()
    a, b = a / a.sum(), torch.full((300,), 1 / 300, dtype=F64)
    moved = x + monotone_shift(x, x, a, y, b)
    assert moved.min() >= y.min() - 1e-13 and moved.max() <= y.max() + 1e-13
    assert (moved[x.argsort()].diff() >= -1e-13).all()


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_chunks_of_directions_are_the_directions(cloud, n):
    x, y = cloud(0, 9, 3), cloud(1, 12, 3)
    whole = kd.SlicedWassersteinDrift(n, chunk=100)(x, y)
    parts = kd.SlicedWassersteinDrift(n, chunk=2)(x, y)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)


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


WIDE = {k: kd.MMDDrift((1.0, 4.0), kernel=k) for k in KERNELS if k != "energy"}


@pytest.mark.parametrize("drift", (EVERY_UNMASKED | WIDE).values(), ids=EVERY_UNMASKED)
def test_particles_reach_the_target(cloud, drift):
    x, y = 0.5 * cloud(0, 60, 2), cloud(1, 60, 2) * torch.tensor([0.3, 1.0])
    y = y + torch.tensor([1.5, 0.0])
    flow = kd.simulate(drift, x, y, 0.2, 60, keep=60)
    before, after = (wasserstein_squared(z, y) for z in (x, flow.final))
    assert after < before / 3  # a discrepancy pulls weakly from where its kernel is small


def test_silverman_is_the_best_bandwidth_of_a_normal_density():
    y = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    variance = 6.0  # of either coordinate, Σ y²/(M − 1)
    assert kd.silverman_bandwidth(y) == pytest.approx(math.sqrt(variance) * 4 ** (-1 / 6))
    with pytest.raises(ArgumentError, match="coincide"):
        kd.silverman_bandwidth(torch.ones(3, 2))
    with pytest.raises(ArgumentError, match="one cloud"):
        kd.silverman_bandwidth(torch.ones(2, 3, 2))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: kd.SinkhornProxyDrift(1.0, population_scaling=1), "population_scaling"),
        (lambda: kd.KLDrift(1.0, form="path"), "form"),
        (lambda: kd.KLDrift(1.0, masses="all"), "masses"),
        (lambda: kd.KLDrift(1.0, samples=0), "samples"),
        (lambda: kd.KLDrift(1.0, generator=-1), "generator"),
        (lambda: kd.KLDrift(1.0, generator=True), "generator"),
        (lambda: kd.KLDrift(1.0, cost="euclidean"), "cost"),
        (lambda: kd.KLDrift(1.0, form="flow", mask_self=True), "mask_self"),
        (lambda: kd.MMDDrift(), "bandwidth"),
        (lambda: kd.MMDDrift(()), "bandwidth"),
        (lambda: kd.MMDDrift([1.0, 0.0]), "bandwidth"),
        (lambda: kd.MMDDrift("one"), "bandwidth"),
        (lambda: kd.MMDDrift(1.0, kernel="energy"), "bandwidth"),
        (lambda: kd.MMDDrift(1.0, kernel="cosine"), "kernel"),
        (lambda: kd.MMDDrift(1.0, backend="gpu"), "backend"),
        (lambda: kd.SlicedWassersteinDrift(0), "directions"),
        (lambda: kd.SlicedWassersteinDrift(chunk=0.5), "chunk"),
        (lambda: kd.SlicedWassersteinDrift(orthogonal=1), "orthogonal"),
        (lambda: kd.SlicedWassersteinDrift(generator="0"), "generator"),
    ],
)
def test_nonsense_is_refused_when_built(make, argument):
    with pytest.raises(OptionError) as caught:
        make()
    assert caught.value.argument == argument


def test_a_bandwidth_whose_unit_overflows_is_refused():
    x = 1e10 * torch.eye(3)
    with pytest.raises(TemperatureError, match="bandwidth: got 1e-15"):
        kd.MMDDrift(1e-15)(x, x)
