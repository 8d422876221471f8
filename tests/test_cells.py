"""The cells engine: its polynomials, its bound on what is left out, and the two verbs.

Tolerances follow from the engine's stated accuracy ε: a log-mass may err by ε for the polynomials
and ε for the cells left out, an average by as much of the spread of the atoms; rounding comes on
top, `reference`'s way (eps × size of a logit).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference as ref
import torch
from hypothesis import given
from hypothesis import strategies as st

import keodrift as kd
from keodrift.reductions import choose_backend, gibbs_kernel
from keodrift.reductions.engines.cells import expansion, partition
from keodrift.reductions.engines.cells import kernel as cells
from keodrift.reductions.engines.cells.kernel import ACCURACY, CellKernel

DTYPES = [torch.float32, torch.float64]


@pytest.fixture
def always(monkeypatch):
    """Small problems are compressed, too."""
    monkeypatch.setattr(cells, "MOMENT_PAIRS", 0)


def modes(seed: int, n: int, d: int, dtype=torch.float64) -> torch.Tensor:
    """Points in three separated blobs of unequal size and width."""
    generator = torch.Generator().manual_seed(seed)
    centre = 3.0 * torch.randn(3, d, generator=generator, dtype=torch.float64)
    pick = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, True, generator=generator)
    width = torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)[pick, None]
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (centre[pick] + width * noise).to(dtype)


def biases(x, y, tau) -> dict[str, torch.Tensor]:
    """What a bias can look like: flat, after many half-steps, rough, with atoms removed."""
    n, m = len(x), len(y)
    a, b = (torch.full((k,), 1 / k, dtype=torch.float64) for k in (n, m))
    late = ref.half_steps(ref.log_kernel(x, y, "half_squared", tau), a, b, 41) - math.log(m)
    rough = 5 * torch.randn(m, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    removed = late.clone()
    removed[::3] = -torch.inf
    far = torch.full((m,), -torch.inf, dtype=torch.float64)
    far[-2:] = 1.0
    return {
        "flat": torch.zeros(m, dtype=torch.float64),
        "late": late,
        "rough": rough,
        "removed": removed,
        "two atoms": far,
    }


def agree(kernel, x, y, bias, tau) -> None:
    """Both verbs beside the dense reference."""
    dtype, eps = x.dtype, torch.finfo(x.dtype).eps
    logits = ref.pairs(x, y, "half_squared") / tau
    alive = torch.isfinite(bias)
    size = 1 + float(logits.max()) + float(bias[alive].abs().max())
    # float64 potentials and cells leave only the rounding of the points themselves.
    allowed = 2 * ACCURACY[dtype] + 8 * eps * size
    mass = kernel.log_mass(bias)
    assert mass.dtype == torch.float64
    assert (mass - ref.log_mass(x, y, bias, "half_squared", tau)).abs().max() <= allowed
    mean = kernel.barycentre(bias)
    assert mean.dtype == dtype
    expected = ref.barycentre(x, y, bias, "half_squared", tau)
    assert (mean - expected).abs().max() <= 2 * allowed * ref.spread(x, y)


# The polynomials.


@given(st.floats(0.0, 4.0), st.sampled_from([1e-3, 1e-5, 1e-9, 1e-12]), st.booleans())
def test_polynomial_is_as_near_to_exp_as_it_says(reach, accuracy, with_slope):
    polynomial = expansion.exponential_polynomial(reach, accuracy, with_slope)
    s = np.random.default_rng(0).uniform(-reach, reach, 5000)
    value = np.polynomial.polynomial.polyval(s, polynomial)
    assert np.abs(value * np.exp(-s) - 1).max() <= 1.01 * accuracy
    if with_slope:
        slope = np.polynomial.polynomial.polyval(s, np.polynomial.polynomial.polyder(polynomial))
        assert np.abs(slope * np.exp(-s) - 1).max() <= 1.01 * accuracy


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("degree", [0, 1, 2, 5])
def test_monomials_and_their_slopes(cloud, d, degree):
    points = cloud(0, 2, 7, d)
    indices = expansion.multi_indices(d, degree)
    assert len(indices) == len(set(indices)) == math.comb(degree + d, d)
    found = expansion.monomials(points, degree)
    for row, index in enumerate(indices):
        powers = torch.tensor(index, dtype=torch.float64)
        assert torch.allclose(found[:, row], (points**powers).prod(-1), rtol=1e-12)
    for axis, (place, factor) in enumerate(expansion.slopes(d, degree)):
        leaf = points.clone().requires_grad_()
        powers = torch.tensor(indices, dtype=torch.float64)
        for row in range(len(indices)):
            value = (leaf ** powers[row]).prod(-1).sum()
            (gradient,) = torch.autograd.grad(value, leaf)
            assert torch.allclose(
                found[:, place[row]] * factor[row], gradient[..., axis], rtol=1e-10
            )


@pytest.mark.parametrize("d", [1, 2, 3])
def test_moments_expand_the_polynomial(cloud, d):
    u, v = 0.3 * cloud(0, 1, 5, d), 0.3 * cloud(1, 1, 6, d)
    polynomial = expansion.exponential_polynomial(2.0, 1e-6, False)
    weights = torch.tensor(expansion.multinomials(d, polynomial), dtype=torch.float64)
    degree = len(polynomial) - 1
    found = (expansion.monomials(u, degree) * weights[:, None]).mT @ expansion.monomials(v, degree)
    s = (u @ v.mT).numpy()
    assert np.allclose(found.numpy(), np.polynomial.polynomial.polyval(s, polynomial), rtol=1e-12)


# The partition and its bound.


@pytest.mark.parametrize(
    "points",
    [
        modes(0, 200, 2),
        modes(0, 200, 3, torch.float32),
        torch.zeros(5, 2),
        torch.randn(1, 3),
        torch.tensor([[0.0], [1e9], [-1e9]]),
        1e12 * torch.randn(50, 3, dtype=torch.float64),
    ],
    ids=["plane", "space", "one place", "one point", "far", "enormous"],
)
def test_cells_hold_every_point_once(points):
    found = partition.cut(points, 0.7)
    for part in (found, found.parents):
        assert sorted(part.order.tolist()) == list(range(len(points)))
        assert int(part.count.sum()) == len(points)
        assert torch.equal(part.start, part.count.cumsum(0) - part.count)
        back = part.centre[part.owner] + part.local.double()
        scale = float(points.abs().max()) + 1
        eps = torch.finfo(points.dtype).eps
        assert (back - points[part.order].double()).abs().max() <= 2 * eps * scale
        assert (part.local.double().norm(dim=-1) <= part.radius[part.owner]).all()
    assert float(found.radius.max()) <= 0.7 * math.sqrt(points.shape[1]) / 2 * (1 + 1e-6)
    # Cells of one parent lie together, parents in order.
    assert torch.equal(found.start[found.first], found.parents.start)


def omitted_share(x, y, bias, side, allowed) -> float:
    """Largest share of a query's mass outside its relevant cells, by brute force."""
    queries, atoms = partition.cut(x, side), partition.cut(y, side)
    biased = bias[atoms.order]
    tilted = partition.Tilted.of(atoms, biased)
    i, j = partition.relevant(queries, atoms, biased, tilted, allowed)
    assert torch.equal(i, i.sort().values)
    kept = torch.zeros(len(queries), len(atoms), dtype=torch.bool)
    kept[i, j] = True
    assert int(kept.sum()) == len(i), "a pair twice"
    logits = bias - ref.pairs(x, y, "half_squared")
    share = logits.softmax(-1)[queries.order][:, atoms.order]
    out = ~kept[queries.owner][:, atoms.owner]
    return float((share * out).sum(-1).max())


@pytest.mark.parametrize("hierarchy", [False, True])
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kind", ["flat", "late", "rough", "removed", "two atoms"])
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_what_is_left_out_keeps_the_bound(resized, hierarchy, d, kind, scale):
    if hierarchy:
        resized(cell_pairs=8)
    x, y = scale * modes(1, 150, d), scale * modes(2, 160, d)
    bias = biases(x, y, 1.0)[kind]
    for allowed in (1e-2, 1e-6):
        assert omitted_share(x, y, bias, 1.3, allowed) <= allowed


def test_something_is_left_out():
    """The bound is worth something: most pairs of cells go on a sharp plan."""
    x, y = 6 * modes(1, 1000, 2), 6 * modes(2, 1000, 2)
    queries, atoms = partition.cut(x, 1.5), partition.cut(y, 1.5)
    bias = biases(x, y, 1.0)["late"][atoms.order]
    tilted = partition.Tilted.of(atoms, bias)
    i, _ = partition.relevant(queries, atoms, bias, tilted, 1e-5)
    assert len(i) <= 0.2 * len(queries) * len(atoms)


# The verbs.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kind", ["flat", "late", "rough", "removed", "two atoms"])
@pytest.mark.parametrize("tau", [0.05, 1.0, 100.0])
def test_verbs(always, dtype, d, kind, tau):
    x, y = modes(1, 170, d, dtype), modes(2, 190, d, dtype)
    bias = biases(x, y, tau)[kind]
    kernel = gibbs_kernel(x, y, "half_squared", tau, backend="cells")
    agree(kernel, x, y, bias, tau)
    back = torch.linspace(-3, 3, len(x), dtype=torch.float64)
    agree(kernel.T, y, x, back, tau)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [False, True])
def test_verbs_on_real_sizes_in_blocks(resized, dtype, mask):
    """Nothing patched but the memory: several blocks of moments, several batches of cells."""
    resized(moments=1 << 14, cell_tile=1 << 14)
    x, y = modes(1, 6000, 2, dtype), modes(2, 5000, 2, dtype)
    x[:200] = y[:200]  # whose own pairs weigh most
    kernel = gibbs_kernel(x, y, "squared", 0.4, mask_self=mask, backend="cells")
    assert kernel._sums(torch.zeros(1, 5000, dtype=torch.float64), False) is not None
    bias = -gibbs_kernel(y, x, "half_squared", 0.2, backend="tiled").log_mass(torch.zeros(6000))
    rows = slice(0, 300)
    found = kernel.log_mass(bias)[rows]
    allowed = 2 * ACCURACY[dtype] + 64 * torch.finfo(dtype).eps * 200
    assert (found - ref.log_mass(x[rows], y, bias, "squared", 0.4, mask)).abs().max() <= allowed
    mean = kernel.barycentre(bias)[rows]
    expected = ref.barycentre(x[rows], y, bias, "squared", 0.4, mask)
    assert (mean - expected).abs().max() <= 2 * allowed * ref.spread(x, y)


def masked_agree(kernel, x, y, bias, tau) -> None:
    """Both verbs without pairs i = i, beside the dense reference."""
    allowed = 4 * ACCURACY[x.dtype] + 500 * torch.finfo(x.dtype).eps
    expected = ref.log_mass(x, y, bias, "half_squared", tau, True)
    found = kernel.log_mass(bias)
    empty = torch.isneginf(expected)
    assert torch.equal(torch.isneginf(found), empty)
    assert bool(((found - expected)[~empty].abs() <= allowed).all())
    mean = ref.barycentre(x, y, bias, "half_squared", tau, True)
    off = kernel.barycentre(bias) - torch.where(empty[..., None], 0.0, mean)
    assert off.abs().max() <= 2 * allowed * ref.spread(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("counts", [(170, 170), (170, 130), (130, 170)])
@pytest.mark.parametrize("kind", ["flat", "late", "removed"])
def test_verbs_without_a_point_itself(always, dtype, d, counts, kind):
    """A particle far from all others is nearly alone in its sum: there digits would be lost."""
    n, m = counts
    points = modes(1, max(counts), d, dtype)
    points[[1, 5]] = torch.tensor([[9.0], [-11.0]], dtype=dtype).expand(2, d)
    x, y = points[:n], points[:m]
    bias = biases(x, y, 1.0)[kind]
    kernel = gibbs_kernel(x, y, "half_squared", 1.0, mask_self=True, backend="cells")
    assert kernel._sums(bias[None], averages=False) is not None, "not by cells"
    masked_agree(kernel, x, y, bias, 1.0)
    back = torch.linspace(-3, 3, n, dtype=torch.float64)
    masked_agree(kernel.T, y, x, back, 1.0)


@pytest.mark.parametrize("alive", [0, 1, 2])
def test_few_atoms_beside_the_excluded_one(always, alive):
    x = modes(1, 40, 2)
    bias = torch.full((40,), -torch.inf, dtype=torch.float64)
    bias[3 : 3 + alive] = 0.3
    kernel = gibbs_kernel(x, x, "half_squared", 1.0, mask_self=True, backend="cells")
    masked_agree(kernel, x, x, bias, 1.0)


def test_points_that_are_all_nearly_alone_are_left_to_pairs(always):
    x = modes(1, 100, 2)
    kernel = gibbs_kernel(x, x, "half_squared", 1e-4, mask_self=True, backend="cells")
    bias = torch.zeros(100, dtype=torch.float64)
    assert kernel._sums(bias[None], averages=False) is None
    expected = ref.log_mass(x, x, bias, "half_squared", 1e-4, True)
    assert torch.allclose(kernel.log_mass(bias), expected, rtol=1e-10)


def test_batches_without_a_point_itself(always):
    x = torch.stack([modes(s, 90, 2) for s in range(3)])
    x[1, 7] = 30.0
    bias = torch.randn(3, 90, generator=torch.Generator().manual_seed(0)).double()
    tau = torch.tensor([0.8, 1.0, 1.5], dtype=torch.float64)
    kernel = gibbs_kernel(x, x, "half_squared", tau, mask_self=True, backend="cells")
    assert kernel._sums(bias, averages=False) is not None
    mass, mean = kernel.log_mass(bias), kernel.barycentre(bias)
    for b in range(3):
        one = x[b], x[b], bias[b], "half_squared", float(tau[b]), True
        assert (mass[b] - ref.log_mass(*one)).abs().max() <= 1e-8
        assert (mean[b] - ref.barycentre(*one)).abs().max() <= 1e-7


def test_far_clouds_and_duplicates(always):
    x = torch.cat([modes(1, 60, 2), torch.zeros(40, 2)]) + 1e4
    y = torch.cat([modes(2, 60, 2), torch.ones(40, 2)])
    bias = torch.zeros(100, dtype=torch.float64)
    kernel = gibbs_kernel(x, y, "half_squared", 0.5, backend="cells")
    mean = kernel.barycentre(bias)
    expected = ref.barycentre(x, y, bias, "half_squared", 0.5)
    assert (mean - expected).abs().max() <= 1e-6


def test_batch_axes(always):
    x = torch.stack([modes(s, 90, 2) for s in range(4)]).reshape(2, 2, 90, 2)
    y = torch.stack([modes(s + 9, 80, 2) for s in range(4)]).reshape(2, 2, 80, 2)
    bias = torch.randn(2, 2, 80, generator=torch.Generator().manual_seed(0)).double()
    kernel = gibbs_kernel(x, y, "half_squared", 0.3, backend="cells")
    mass, mean = kernel.log_mass(bias), kernel.barycentre(bias)
    assert (mass - ref.log_mass(x, y, bias, "half_squared", 0.3)).abs().max() <= 1e-8
    assert (mean - ref.barycentre(x, y, bias, "half_squared", 0.3)).abs().max() <= 1e-8


def test_the_precision_of_networks_does_not_reach_inside(always):
    x, y = modes(1, 300, 2, torch.float32), modes(2, 300, 2, torch.float32)

    def verbs():
        kernel = gibbs_kernel(x, y, "half_squared", 0.3, backend="cells")
        return kernel.log_mass(torch.zeros(300)), kernel.barycentre(torch.zeros(300))

    expected = verbs()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            got = verbs()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_no_atom_alive(always):
    kernel = gibbs_kernel(torch.zeros(4, 2), torch.ones(3, 2), backend="cells")
    assert torch.isneginf(kernel.log_mass(torch.full((3,), -torch.inf))).all()


def test_pairs_serve_while_the_bias_hardly_moves(always):
    x, y = modes(1, 300, 2), modes(2, 300, 2)
    kernel = gibbs_kernel(x, y, "half_squared", 0.05, backend="cells")
    bias = biases(x, y, 0.05)["late"]
    kernel.log_mass(bias)
    pairs = kernel._problems[0].pairs
    wave = torch.linspace(-0.4, 0.4, 300, dtype=torch.float64)
    agree(kernel, x, y, bias + wave + 7, 0.05)
    assert kernel._problems[0].pairs is pairs
    agree(kernel, x, y, bias + 20 * wave, 0.05)
    assert kernel._problems[0].pairs is not pairs


@pytest.mark.parametrize("case", ["d = 4", "cost", "gradient", "values", "few points"])
@pytest.mark.parametrize("mask", [False, True])
def test_what_cannot_be_compressed_is_still_right(case, mask, cloud):
    d = 4 if case == "d = 4" else 2
    x, y, bias = cloud(0, 20, d), cloud(1, 20, d), cloud(2, 20)
    cost = "euclidean" if case == "cost" else "half_squared"
    if case == "gradient":
        x.requires_grad_()
    values = cloud(3, 20, 6) if case == "values" else None
    kernel = gibbs_kernel(x, y, cost, 0.7, mask_self=mask, backend="cells")
    mass, mean = kernel.log_mass(bias), kernel.barycentre(bias, values)
    assert torch.allclose(mass, ref.log_mass(x, y, bias, cost, 0.7, mask), atol=1e-10)
    assert torch.allclose(mean, ref.barycentre(x, y, bias, cost, 0.7, mask, values), atol=1e-10)
    if case == "gradient":
        (slope,) = torch.autograd.grad(mass.sum(), x)
        assert torch.allclose(-0.7 * slope, x - mean, atol=1e-9)


# Drifts through it.


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("mask", [False, True])
def test_sinkhorn_drift_is_that_of_the_dense_engine(always, tau, mask):
    x, y = modes(1, 400, 2), modes(2, 500, 2)
    how = {"tol": 1e-7, "max_half_steps": 5000, "mask_self": mask}
    drifts = [kd.SinkhornDrift(tau, **how, backend=backend)(x, y) for backend in ("cells", "dense")]
    assert (drifts[0] - drifts[1]).norm() <= 1e-5 * drifts[1].norm()


def test_chosen_for_large_clouds_in_low_dimension():
    assert choose_backend(10**5, 10**5, 2).engine == "cells"
    assert choose_backend(10**5, 10**5, 4).engine != "cells"
    assert choose_backend(10**5, 10**5, 2, cost="euclidean").engine != "cells"
    assert "compressed" in choose_backend(10**6, 10**6, 2).reason
    x = torch.zeros(20_000, 2)
    for mask in (False, True):
        assert isinstance(gibbs_kernel(x, x, mask_self=mask), CellKernel)
