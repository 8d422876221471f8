"""Fields and drifts of one's own, fields by class, and what a field says about its solve."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.costs import mahalanobis
from keodrift.drifts import ClassField, Drift, SoftmaxDrift
from keodrift.errors import OptionError, ShapeError
from keodrift.fields import Field, SoftmaxField
from keodrift.flow import simulate
from keodrift.transport import EntropicProblem, Sinkhorn, coarse, cooled

F64 = torch.float64


@dataclass(frozen=True)
class MeanField(Field):
    particles: torch.Tensor
    shift: torch.Tensor

    def __call__(self, z=None):
        z = self.particles if z is None else z
        return self.shift.expand_as(z)


@dataclass(frozen=True)
class MeanDrift(Drift):
    """A drift without temperature or cost: every particle moves as the mean should."""

    def _fit(self, clouds, start):
        shift = (clouds.b[..., None] * clouds.y).sum(-2) - (clouds.a[..., None] * clouds.x).sum(-2)
        return MeanField(clouds.x, shift[..., None, :].to(clouds.x.dtype))


def test_a_drift_needs_neither_temperature_nor_cost(cloud):
    x, y, b = cloud(0, 6, 2), cloud(1, 8, 2), cloud(2, 8).exp()
    expected = (b[:, None] * y).sum(0) / b.sum() - x.mean(0)
    v = MeanDrift()(x, y, y_weights=b)
    torch.testing.assert_close(v, expected.expand(6, 2))
    field = MeanDrift().fit(x, y)
    assert field.half_steps == 1 and field.converged is None and field.marginal_error is None
    # Labels, flows and the loss come with the base.
    labels = {"x_labels": torch.tensor([0, 1] * 3), "y_labels": torch.tensor([0, 1] * 4)}
    by_class = MeanDrift()(x, y, **labels)
    torch.testing.assert_close(by_class[::2], MeanDrift()(x[::2], y[::2]))
    flow = simulate(MeanDrift(), x, y, 1.0, 1)
    torch.testing.assert_close(flow.final.mean(0), y.mean(0))
    free = x.clone().requires_grad_()
    kd.drift_loss(free, y, MeanDrift()).backward()
    torch.testing.assert_close(free.grad, -MeanDrift()(x, y) / 6)


@dataclass(frozen=True)
class WitnessDrift(SoftmaxDrift):
    """Gaussian MMD: g = 0 and the masses exp ℓ±/τ, which differ."""

    def _fit(self, clouds, start):
        def masses(field, data, model, at_particles):
            plus, minus = data.log_mass(field.data.bias), model.log_mass(field.model.bias)
            return plus.exp() / self.tau, minus.exp() / self.tau

        return self.field(clouds, clouds.b.log(), clouds.c.log(), masses=masses)


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_the_two_sides_may_have_masses_of_their_own(cloud, backend):
    """V = −∇ of the witness E_q k(x, ·) − E_p k(y, ·) of the kernel exp(−‖x−y‖²/2τ)."""
    x, y, z, tau = cloud(0, 7, 2), cloud(1, 9, 2) + 0.5, cloud(2, 5, 2), 0.7
    field = WitnessDrift(tau, mask_self=False, backend=backend).fit(x, y)
    for at, got in ((x, field()), (z, field(z))):
        q = at.clone().requires_grad_()
        witness = ref.log_kernel(q, x, "half_squared", tau).exp().mean(-1)
        witness = witness - ref.log_kernel(q, y, "half_squared", tau).exp().mean(-1)
        (slope,) = torch.autograd.grad(witness.sum(), q)
        torch.testing.assert_close(got, -slope, rtol=0, atol=1e-13)


def classes(seed: int, sizes: dict[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two separated modes a class, in unequal shares."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([k for k, n in sizes.items() for _ in range(n)])
    side = torch.rand(len(labels), generator=generator) < 0.3
    points = 0.2 * torch.randn(len(labels), 2, generator=generator, dtype=F64)
    points[:, 0] += 2 * side
    points[:, 1] += 5 * labels
    order = torch.randperm(len(labels), generator=generator)
    return points[order], labels[order]


X, X_LABELS = classes(0, {0: 150, 3: 90, 7: 40})
Y, Y_LABELS = classes(1, {0: 100, 3: 120, 7: 200})
LABELS = {"x_labels": X_LABELS, "y_labels": Y_LABELS}
DRIFT = kd.SinkhornDrift(0.1, cost="squared", tol=1e-6)


@pytest.mark.parametrize(
    ("backend", "at_once", "parts"), [("auto", 3, 1), ("auto", 2, 2), ("tiled", 3, 3)]
)
def test_a_field_by_class_is_one_field_a_class(backend, at_once, parts, resized):
    """In one batch, two classes at a time, and one class after another."""
    resized(stored=at_once * 150 * 200)
    drift = kd.SinkhornDrift(0.1, cost="squared", tol=1e-6, backend=backend)
    field = drift.fit(X, Y, **LABELS)
    assert isinstance(field, ClassField) and field.classes == (0, 3, 7)
    assert len(field.parts) == parts
    assert torch.equal(field(), drift(X, Y, **LABELS))
    assert field.converged.tolist() == [True] * 3 and field.marginal_error.shape == (3,)
    z, labels = classes(5, {7: 6, 0: 4})
    at_z = field(z, labels)
    for k in field.classes:
        alone = DRIFT.fit(X[k == X_LABELS], Y[k == Y_LABELS])
        torch.testing.assert_close(field()[k == X_LABELS], alone(), rtol=0, atol=1e-4)
        if k in labels:
            here = labels == k
            torch.testing.assert_close(at_z[here], alone(z[here]), rtol=0, atol=1e-4)
    assert torch.autograd.gradcheck(lambda q: field(q, labels), z.requires_grad_())


def test_classes_get_coarse_and_newton_starts_in_one_batch():
    """Mass between modes is what half-steps mend slowly, padded or not."""
    field = DRIFT.fit(X, Y, **LABELS)
    problem = field.couplings[0].problem
    slow = Sinkhorn(tol=1e-6).solve(problem, cooled)
    fast = Sinkhorn(tol=1e-6).solve(problem, coarse)
    assert bool(fast.converged.all()) and fast.half_steps < slow.half_steps / 2


def test_a_field_by_class_is_a_start_for_the_next():
    first = DRIFT.fit(X, Y, **LABELS)
    again = DRIFT.fit(X, Y, **LABELS, start=first)
    assert again.half_steps <= 3 < first.half_steps
    moved = X + 0.003 * first()
    warm, cold = DRIFT.fit(moved, Y, **LABELS, start=first), DRIFT.fit(moved, Y, **LABELS)
    torch.testing.assert_close(warm(), cold(), rtol=0, atol=1e-4)
    fewer = X_LABELS != 3  # another set of classes begins cold
    part = {"x_labels": X_LABELS[fewer], "y_labels": Y_LABELS}
    assert bool(DRIFT.fit(X[fewer], Y, **part, start=first).converged.all())


def test_what_fields_by_class_refuse():
    field = DRIFT.fit(X, Y, **LABELS)
    with pytest.raises(OptionError, match="^labels: got None"):
        field(X)
    with pytest.raises(OptionError, match=r"^labels: got \[1\]"):
        field(X[:2], torch.tensor([0, 1]))
    with pytest.raises(ShapeError, match="^labels"):
        field(X[:2], torch.tensor([0]))
    with pytest.raises(OptionError, match="^start"):
        DRIFT.fit(X, Y, start=field)
    with pytest.raises(OptionError, match="^start"):
        DRIFT.fit(X, Y, **LABELS, start=DRIFT.fit(X, Y))


@pytest.mark.parametrize("sizes", [(40, 30), (90, 100), (500, 300)], ids=str)
def test_a_batch_starts_as_its_problems_do_alone(cloud, sizes):
    n, m = sizes
    modes = 2 * torch.randint(2, (3, n + m, 1), generator=torch.Generator().manual_seed(0)) - 1.0
    points = 0.3 * cloud(0, 3, n + m, 2) + modes
    x, y = points[:, :n], points[:, n:]
    a, b = (torch.full((3, k), 1 / k, dtype=F64) for k in (n, m))
    b[1, ::3] = 0
    b = b / b.sum(-1, keepdim=True)
    cost = kd.SinkhornDrift(1.0).cost
    solver = Sinkhorn(tol=1e-5)
    together = solver.solve(EntropicProblem(x, y, a, b, cost, 0.05), coarse)
    assert bool(together.converged.all())
    singles = [
        solver.solve(EntropicProblem(x[k], y[k], a[k], b[k], cost, 0.05), coarse) for k in range(3)
    ]
    # As fast as the slowest of them, give or take a sweep.
    assert together.half_steps <= max(one.half_steps for one in singles) + 2
    assert len(together.levels) == len(singles[0].levels)
    for k, one in enumerate(singles):
        error = ref.column_error(
            ref.log_kernel(x[k], y[k], "half_squared", 0.05), a[k], b[k], together.bias[k]
        )
        assert float(error) <= 1e-5 * (1 + 1e-6) and float(one.marginal_error) <= 1e-5


def test_a_solve_says_why_it_ended(cloud):
    x, y = cloud(0, 300, 2), cloud(1, 320, 2)
    field = kd.SinkhornDrift(0.05, tol=1e-4).fit(x, y)
    data = field.couplings[0]
    assert data.levels == (*data.coarse, data.half_steps) and len(data.levels) == 2
    assert f"ended after {data.half_steps - 1} half-steps" in field.reason
    assert "≤ 0.0001" in field.reason
    fixed = kd.SinkhornDrift(0.05, half_steps=41).fit(x, y)
    assert "41 half-steps" in fixed.reason
    with pytest.warns(kd.ConvergenceWarning, match="stopped after 2 half-steps"):
        capped = kd.SinkhornDrift(0.05, tol=1e-12, max_half_steps=2).fit(x, y)
    assert "stopped after 2 half-steps" in capped.reason and "> 1e-12" in capped.reason
    assert kd.OneSidedDrift(0.1).fit(x, y).reason == "nothing was solved"


def test_softmax_fields_are_fields(cloud):
    field = kd.OneSidedDrift(0.5).fit(cloud(0, 5, 2), cloud(1, 6, 2))
    assert isinstance(field, SoftmaxField) and isinstance(field, Field)
    with pytest.raises(kd.ArgumentError, match="^field: got ClassField"):
        kd.effective_neighbours(DRIFT.fit(X, Y, **LABELS))


def test_slopes_of_the_joint_form_hold_under_extreme_weights(cloud):
    x, y, u, z = cloud(0, 7, 3), cloud(1, 40, 3) + 20, cloud(2, 2, 3), cloud(3, 3, 3)
    drift = kd.TwoSidedDrift(20.0, form="joint")
    weights = torch.tensor([1e87, 1e-175], dtype=F64)
    slopes = []
    for dtype in (F64, torch.float32):
        points = z.to(dtype, copy=True).requires_grad_()
        clouds = x.to(dtype), y.to(dtype)
        field = drift.fit(*clouds, negatives=u.to(dtype), negative_weights=weights)
        field(points).sum().backward()
        slopes.append(points.grad.double())
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-6)


def test_a_large_class_does_not_keep_small_ones_from_one_batch():
    sizes = {0: 20, 1: 300, 2: 22, 3: 21}
    (x, x_labels), (y, y_labels) = classes(0, sizes), classes(1, sizes)
    seen = []

    def together(n, m, problems):
        seen.append((n, m, problems))
        return n * m * problems <= 3 * 22 * 22

    class Some(kd.SinkhornDrift):
        def _together(self, n, m, d, problems, device):
            return together(n, m, problems)

    field = Some(0.1, cost="squared", tol=1e-6).fit(x, y, x_labels=x_labels, y_labels=y_labels)
    assert [part.classes for part in field.parts] == [(0, 2, 3), (1,)]
    assert field.classes == (0, 1, 2, 3) and field.converged.tolist() == [True] * 4
    errors = dict(zip(field.classes, field.marginal_error.tolist(), strict=True))
    for part in field.parts:
        own = part.field.marginal_error.tolist()
        assert own == [errors[k] for k in part.classes]
    for k in sizes:
        alone = DRIFT.fit(x[x_labels == k], y[y_labels == k])
        torch.testing.assert_close(field()[x_labels == k], alone(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "drift", [DRIFT, kd.TwoSidedDrift(0.1, mask_self=False)], ids=["Sinkhorn", "split"]
)
def test_classes_one_after_another_leave_no_block_of_pairs(drift, resized):
    whole = drift(X, Y, **LABELS)
    resized(stored=150 * 200)
    field = drift.fit(X, Y, **LABELS)
    assert len(field.parts) > 1
    for part in field.parts:
        for kernel in part.field.kernels:
            assert "block" not in vars(kernel) and "T" not in vars(kernel)
            assert not kernel._absorbed
        queries = X[part.index]  # what is asked for later is made again
        torch.testing.assert_close(part.field(queries), part.field(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(field(), whole, rtol=0, atol=1e-4)


MASSES = {
    "proxy": kd.SinkhornProxyDrift(1.0, mask_self=False),
    "joint": kd.TwoSidedDrift(1.0, form="joint", mask_self=False),
    "relaxed": kd.SinkhornDrift(1.0, reach=0.3, masses="gradient", half_steps=3),
}


@pytest.mark.parametrize("drift", MASSES.values(), ids=MASSES)
def test_masses_do_not_depend_on_what_a_batch_is_padded_with(drift):
    """Far from all particles masses are cut; by points that are there, not by places for them."""
    x, y = torch.zeros(3, 1, dtype=F64), torch.tensor([[4.0], [5.0], [5.0]], dtype=F64)
    z, first = torch.tensor([[3.0]], dtype=F64), torch.tensor([0])
    labels = torch.tensor([0, 1, 1])
    alone = drift.fit(x[:1], y[:1])(z)
    by_class = drift.fit(x, y, x_labels=labels, y_labels=labels)(z, first)
    weightless = drift.fit(x[:1], y, y_weights=torch.tensor([1.0, 0, 0], dtype=F64))(z)
    torch.testing.assert_close(by_class, alone)
    torch.testing.assert_close(weightless, alone)


def test_a_heavy_negative_is_not_cut():
    """One of weight 100: the joint field at the particle as Algorithm 2 has it."""
    x, y, u = (torch.tensor([[v]], dtype=F64) for v in (0.0, 0.5, 3.03))
    weight = torch.tensor([100.0], dtype=F64)
    v = kd.TwoSidedDrift(1.0, form="joint", mask_self=False)(
        x, y, negatives=u, negative_weights=weight
    )
    points = torch.cat([y, x, u])[:, 0]
    counts = torch.tensor([1.0, 1.0, 100.0], dtype=F64)
    kernel = (-points.square() / 2).exp()  # of the only row, at 0
    coupling = counts * kernel / ((counts * kernel).sum() * kernel).sqrt()
    data, model = coupling[:1], coupling[1:]
    expected = model.sum() * (data * points[:1]).sum() - data.sum() * (model * points[1:]).sum()
    torch.testing.assert_close(v[0, 0], expected)


def test_fields_and_parts_of_fields_are_compared_by_identity(cloud):
    x, labels = cloud(0, 6, 2), torch.tensor([0, 1] * 3)
    one, other = (
        kd.OneSidedDrift(1.0).fit(x, x, x_labels=labels, y_labels=labels) for _ in range(2)
    )
    assert one == one and one != other


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("cost", ["euclidean", "pseudo_huber"])
@pytest.mark.parametrize("tau", [1e-3, 1e-5, 1e-6])
def test_slopes_at_large_costs_have_weights_of_sum_one(backend, cost, tau):
    """Twenty equal atoms, C/τ up to 2·10⁸: float32 rounds a logit by more than log 20."""
    x, y = torch.zeros(1, 2), torch.tensor([[200.0, 0.0]]).repeat(20, 1)
    v = kd.OneSidedDrift(tau, cost=cost, velocity="gradient", backend=backend)(x, y)
    slope = 1.0 if cost == "euclidean" else 200 / (1 + 200**2) ** 0.5
    torch.testing.assert_close(v, torch.tensor([[slope, 0.0]]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("cost", ["cosine", mahalanobis(torch.tensor([[2.0, 0.3], [0.3, 1.0]]))])
def test_a_field_of_a_lifted_cost_knows_where_no_graph_is_wanted(cloud, backend, cost):
    x, y = cloud(0, 9, 2), cloud(1, 11, 2)
    drift = kd.OneSidedDrift(0.5, cost=cost, velocity="gradient", backend=backend)
    field, z = drift.fit(x, y), cloud(2, 4, 2).requires_grad_()
    with torch.no_grad():
        found = [field(z), field(z * 1), field(z[:2])]
    assert not any(v.requires_grad for v in found)
    expected = field(z.detach())
    for v, e in zip(found, (expected, expected, expected[:2]), strict=True):
        torch.testing.assert_close(v, e)
