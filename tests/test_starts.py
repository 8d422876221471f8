"""Clusters, and solves that begin at a carried potential."""

from __future__ import annotations

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.costs import squared
from keodrift.reductions import ENGINES, all_costs
from keodrift.transport import Carried, Coupling, EntropicProblem, Sinkhorn, clusters, coarse
from keodrift.transport.newton import newton


def weights_of(n: int, seed: int) -> torch.Tensor:
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[::7] = 0
    return drawn / drawn.sum()


def uniform(n: int) -> torch.Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("d", [1, 2, 40])
@pytest.mark.parametrize("k", [1, 16, 300])
def test_clusters_keep_mass_and_mean(resized, cloud, regional, d, k):
    if regional:
        resized(searched=0)
    points, weights = cloud(0, 200, d), weights_of(200, 1)
    centres, mass = clusters.cluster(points, weights, k)
    assert len(centres) == len(mass) <= min(k, int((weights > 0).sum()))
    assert bool((mass > 0).all()) and abs(float(mass.sum()) - 1) <= 1e-12
    assert torch.allclose(mass @ centres, weights @ points, atol=1e-12)
    again, _ = clusters.cluster(points, weights, k)
    assert torch.equal(again, centres)


def test_clusters_far_from_the_origin_are_those_near_it(cloud):
    points = (cloud(0, 500, 2) * 256).round().float() / 256  # exact also where it is shifted
    far = points + 8192
    assert torch.equal(far - 8192, points)
    (centres, mass), (moved, same) = (clusters.cluster(p, uniform(500), 30) for p in (points, far))
    assert torch.equal(mass, same)
    torch.testing.assert_close(moved - 8192, centres, rtol=0, atol=1e-3)  # a rounding there


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_an_engine_that_compiles_nothing_does_so_for_clusters_too(
    monkeypatch, resized, cloud, backend
):
    resized(stored=0)
    drift = kd.SinkhornDrift(0.1, backend=backend)
    monkeypatch.setitem(ENGINES, "keops", None)
    field = drift.fit(cloud(0, 700, 2), cloud(1, 600, 2) + 2)
    assert bool(field.converged) and field.couplings[0].problem.kernel.engine.name == backend


def test_the_regional_search_is_nearly_the_exact_one(resized, cloud):
    points, samples = cloud(0, 3000, 2), cloud(1, 400, 2)
    exact = torch.cdist(points, samples).amin(-1)
    resized(searched=0)
    found = (points - samples[clusters._owners(points, samples)]).norm(dim=-1)
    assert bool((found >= exact - 1e-12).all())
    # Points near the border of a region may miss a sample across it.
    assert float((found <= exact + 1e-12).double().mean()) >= 0.7
    assert float(found.mean()) <= 1.25 * float(exact.mean())


def test_the_regional_search_survives_coinciding_points(resized):
    resized(searched=0)
    points = torch.cat([torch.zeros(50, 2), torch.ones(3, 2)])
    centres, mass = clusters.cluster(points, torch.full((53,), 1 / 53, dtype=torch.float64), 20)
    assert abs(float(mass.sum()) - 1) <= 1e-12 and len(centres) <= 20


@pytest.mark.parametrize("call", [kd.SinkhornDrift(0.1), kd.sinkhorn_divergence])
def test_clusters_of_a_cloud_are_found_once(call, cloud, monkeypatch):
    found = []

    def counted(points, *rest):
        found.append(points)
        return clusters_of(points, *rest)

    clusters_of = clusters.cluster
    monkeypatch.setattr(clusters, "cluster", counted)
    x, y = cloud(0, 2000, 2), cloud(1, 2000, 2) + 1
    call(x, y) if isinstance(call, kd.SinkhornDrift) else call(x, y, 0.1)
    assert len(found) == len({(id(points), len(points)) for points in found}) >= 4


def batch(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two draws of four separated modes: equal in law, unequal in the mass of each mode."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]]).double()
    pick = torch.randint(4, (2, n), generator=generator)
    noise = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    return corners[pick[0]] + 0.3 * noise[0], corners[pick[1]] + 0.2 * noise[1]


def test_a_new_batch_is_mended_on_clusters(monkeypatch):
    """A potential cannot know the next batch's imbalance; clusters find it without full passes."""
    drift = kd.SinkhornDrift(0.2, cost="squared", tol=1e-4)
    first = drift.fit(*batch(0, 400))
    x, y = batch(1, 400)
    warm = drift.fit(x, y, start=first)
    a = torch.full((400,), 1 / 400, dtype=torch.float64)
    problem = EntropicProblem(x, y, a, a, squared, 0.2)
    carried = Coupling(problem, first.couplings[0].potential_at(y), 1e-4)
    plainly = Sinkhorn(tol=1e-4).solve(problem, lambda *_: carried)
    assert bool(warm.converged)
    assert warm.couplings[0].half_steps < plainly.half_steps
    p = ref.problem(x, y, 0.2, cost="squared")
    expected = ref.sinkhorn(p)(x)
    assert float((warm() - expected).norm() / expected.norm()) <= 1e-2


@pytest.mark.parametrize("tau", [0.5, 0.05])
@pytest.mark.parametrize("weighted", [False, True])
def test_newton_solves_small_problems(tau, weighted):
    """Separated modes with unequal masses, where half-steps take thousands."""
    x, y = batch(0, 60)
    x, y = x[:50], y[:40]
    a, b = (weights_of(n, n) if weighted else uniform(n) for n in (50, 40))
    start = torch.zeros(40, dtype=torch.float64)
    g, f = newton(EntropicProblem(x, y, a, b, squared, tau), start, tol=1e-8)
    coupling = a[:, None] * b * (f[:, None] + g - torch.cdist(x, y).square() / tau).exp()
    assert float((coupling.sum(0) - b).abs().sum()) <= 1e-6
    assert float((coupling.sum(1) - a).abs().sum()) <= 1e-6
    # Points without weight have the potential of their half-step.
    h = -torch.logsumexp(a.log()[:, None] + f[:, None] - torch.cdist(x, y).square() / tau, 0)
    assert torch.allclose(g, h, atol=1e-6)


def test_a_hopeless_problem_is_no_worse_after_newton():
    x, y = batch(0, 40)
    a, start = uniform(40), torch.zeros(40, dtype=torch.float64)

    def dual(g: torch.Tensor) -> float:
        f = -torch.logsumexp(a.log() + g - torch.cdist(x, y).square() / 1e-5, 1)
        return float((a * f).sum() + (a * g).sum())

    g, _ = newton(EntropicProblem(x, y, a, a, squared, 1e-5), start, tol=1e-8)
    assert bool(torch.isfinite(g).all()) and dual(g) >= dual(start)


def test_the_same_batch_again_takes_one_sweep():
    drift = kd.SinkhornDrift(0.2, cost="squared", tol=1e-4)
    x, y = batch(0, 400)
    first = drift.fit(x, y)
    assert drift.fit(x, y, start=first).couplings[0].half_steps <= 3


@pytest.mark.parametrize("taus", [(0.05, 0.055), (0.05, (0.04, 0.06))], ids=str)
def test_a_carried_potential_is_taken_to_the_new_temperature(cloud, taus):
    """It is a cost, and was kept in units of the old one."""
    y = cloud(1, 2, 1200, 2)
    x = cloud(0, 2, 1200, 2) + torch.tensor([1.0, 0.0])
    a = uniform(1200).expand(2, -1)
    old, new = (torch.as_tensor(tau, dtype=torch.float64).expand(2) for tau in taus)
    before = Sinkhorn(tol=1e-6).solve(EntropicProblem(x, y, a, a, squared, old), coarse)
    problem = EntropicProblem(x, y, a, a, squared, new)
    begins = []

    class Watched(Sinkhorn):
        def solve(self, problem, start):
            begins.append(start(problem, self).g)
            return super().solve(problem, start)

    Carried(before, 0.0)(problem, Watched(tol=1e-3))
    known = before.potential_at(y) * (old / new)[:, None]
    torch.testing.assert_close(begins[0], known)


def test_classes_that_change_places_in_size_are_still_carried(cloud):
    x, y = cloud(0, 401, 2), cloud(1, 200, 2)
    y_labels = torch.arange(200) % 2
    drift = kd.SinkhornDrift(tau=0.05)

    def fitted(first: int, start=None):
        x_labels = (torch.arange(401) >= first).long()
        field = drift.fit(x, y, x_labels=x_labels, y_labels=y_labels, start=start)
        (part,) = field.parts
        return field, sum(coupling.half_steps for coupling in part.field.couplings)

    before, cold = fitted(200)
    _, moved = fitted(201, before)
    assert moved < cold


def test_more_points_than_torch_draws_from(cloud, monkeypatch):
    monkeypatch.setattr(clusters, "MULTINOMIAL", 50)
    points, weights = cloud(0, 400, 2), weights_of(400, 1)
    centres, masses = clusters.cluster(points, weights, 30)
    assert 20 < len(masses) <= 30
    torch.testing.assert_close(masses.sum(), weights.sum())
    torch.testing.assert_close(masses @ centres, weights @ points)


@pytest.mark.parametrize("reach", [None, 2.0])
def test_many_small_problems_are_begun_some_at_a_time(cloud, resized, monkeypatch, reach):
    x, y, a = cloud(0, 2, 5, 30, 2), cloud(1, 2, 5, 40, 2), weights_of(30, 0).expand(2, 5, 30)
    tau = torch.linspace(0.02, 1, 10, dtype=torch.float64).reshape(2, 5)
    problem = EntropicProblem(x, y, a, uniform(40).expand(2, 5, 40), squared, tau, reach=reach)
    expected = newton(problem, torch.zeros(2, 5, 40, dtype=torch.float64), tol=1e-9)
    resized(held=3 * 30 * 40)
    held = []

    def watched(x, y, cost):
        held.append(len(x))
        return all_costs(x, y, cost)

    monkeypatch.setattr("keodrift.transport.newton.all_costs", watched)
    found = newton(problem, torch.zeros(2, 5, 40, dtype=torch.float64), tol=1e-9)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert held == [3, 3, 3, 1]


def test_a_weightless_point_far_away_does_not_move_the_clusters(cloud):
    points = cloud(0, 300, 2, dtype=torch.float32) * 0.1
    points[150:] += 4
    weights = torch.full((300,), 1 / 300, dtype=torch.float64)
    padded = torch.cat([torch.full((1, 2), 1e6), points])
    shares = torch.cat([torch.zeros(1, dtype=torch.float64), weights])
    centres, masses = clusters.cluster(padded, shares, 20)
    expected, held = clusters.cluster(points, weights, 20)
    torch.testing.assert_close(centres, expected)
    torch.testing.assert_close(masses, held)
