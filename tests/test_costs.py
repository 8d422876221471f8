"""Ground costs: their values, their scaling and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.costs import (
    COSTS,
    Cost,
    as_cost,
    check_cost,
    euclidean,
    half_squared,
    mahalanobis,
    power,
    pseudo_huber,
    recognised,
    squared,
)
from keodrift.errors import (
    ArgumentError,
    CostError,
    OptionError,
    OutOfMemoryError,
    TemperatureError,
)
from keodrift.reductions import all_costs, gibbs_kernel, mean_cost


@pytest.mark.parametrize("name", ["half_squared", "squared", "euclidean"])
def test_named_costs_are_their_formulas(cloud, name):
    x, y = cloud(0, 2, 5, 3), cloud(1, 2, 7, 3)
    torch.testing.assert_close(as_cost(name).pairs(x, y), ref.pairs(x, y, name))


def test_values_by_hand():
    x, y = torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert half_squared.pairs(x, y).tolist() == [[12.5, 0.0]]
    assert squared.pairs(x, y).tolist() == [[25.0, 0.0]]
    assert euclidean.pairs(x, y).tolist() == [[5.0, pytest.approx(0.0, abs=1e-18)]]


@pytest.mark.parametrize("name", ["half_squared", "squared"])
@pytest.mark.parametrize("tau", [1e-3, 0.7, 40.0])
def test_scaled_lengths_absorb_the_temperature(cloud, name, tau):
    """What the engines rely on: C/τ is ½‖·‖² of scaled points."""
    x, y = cloud(0, 5, 3), cloud(1, 7, 3)
    cost = as_cost(name)
    length = cost.length(torch.tensor(tau).double())
    scaled = ref.pairs(x / length, y / length, "half_squared")
    torch.testing.assert_close(scaled, cost.pairs(x, y) / tau)


def test_distance_is_differentiable_where_points_coincide():
    x = torch.zeros(1, 2, requires_grad=True)
    euclidean.pairs(x, torch.zeros(1, 2)).sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 2))


def test_names_expressions_and_costs_are_understood():
    assert as_cost("squared") is squared
    assert list(COSTS) == ["half_squared", "squared", "euclidean", "cosine", "pseudo_huber"]
    own = Cost("own", ref.student)
    assert as_cost(own) is own
    assert as_cost(ref.student).name == "student"
    x, y = torch.zeros(2, 3), torch.ones(4, 3)
    torch.testing.assert_close(as_cost(ref.student).pairs(x, y), torch.full((2, 4), math.log(4.0)))


def test_symmetry_is_declared_or_tried(cloud):
    x, y = cloud(0, 40, 2), cloud(1, 50, 2)
    assert squared.symmetric and squared.turned is squared
    assert check_cost(as_cost(ref.student), x, y).symmetric is True
    assert check_cost(as_cost(ref.lopsided), x, y).symmetric is False
    declared = Cost("declared", ref.lopsided, symmetric=True)
    assert check_cost(declared, x, y) is declared
    turned = as_cost(ref.lopsided).turned
    torch.testing.assert_close(turned.pairs(y, x), ref.pairs(x, y, "lopsided").mT)
    assert turned.turned.expression is ref.lopsided


@pytest.mark.parametrize("wrong", ["manhattan", "", None, 2.0, ["squared"]])
def test_what_is_no_cost_is_refused(wrong):
    with pytest.raises(OptionError) as error:
        as_cost(wrong)
    assert error.value.argument == "cost"
    assert "half_squared" in error.value.needs


@pytest.mark.parametrize(
    "expression",
    [
        lambda x, y: ((x - y) ** 2).sum(),  # one number for all pairs
        lambda x, y: ((x - y) ** 2).sum(-1, keepdim=True),
        lambda x, y: (x - y) ** 2,
        lambda x, y: 1.0,
        lambda x, y: None,
        lambda x, y: x.no_such_method(),
        lambda x, y: (x @ y).sum(-1),
    ],
)
def test_expressions_without_one_number_a_pair_are_refused(cloud, expression):
    with pytest.raises(CostError) as error:
        as_cost(expression).pairs(cloud(0, 5, 3), cloud(1, 7, 3))
    assert isinstance(error.value, ArgumentError)
    assert error.value.argument == "cost" and "c(x, y)" in error.value.needs


@pytest.mark.parametrize("drift", [kd.OneSidedDrift, kd.TwoSidedDrift, kd.SinkhornDrift])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_an_expression_that_is_nan_at_a_single_point_is_refused(cloud, drift, backend):
    def holed(x, y):
        return ((x - y) ** 2).sum(-1) + 0 * (9 - y[..., 0]).sqrt()

    x, y = cloud(0, 200, 2), cloud(1, 300, 2)
    y[37, 0] = 10  # no point at which it is tried
    with pytest.raises(CostError, match="NaN at some pairs"):
        drift(0.5, cost=holed, backend=backend)(x, y)


WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
MATRIX = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]], dtype=torch.float64)
OTHERS = {
    "cosine": as_cost("cosine"),
    "mahalanobis": mahalanobis(MATRIX),
    "pseudo-Huber": pseudo_huber(0.7),
    "power": power(1.5),
    "weighted L1": Cost(
        "weighted L1", lambda x, y, w: (w * (x - y).abs()).sum(-1), parameters={"w": WEIGHTS}
    ),
}


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_engines_answer_for_every_cost(cloud, name, backend, dtype):
    check_verbs(cloud, OTHERS[name], backend, dtype)


# The others are formulas that these have: of a quadratic cost, and of a distance.
@pytest.mark.parametrize("name", ["cosine", "mahalanobis", "weighted L1"])
def test_keops_answers_for_lifted_and_written_costs(cloud, keops, name):
    check_verbs(cloud, OTHERS[name], "keops", torch.float32)


def check_verbs(cloud, cost, backend, dtype):
    """Both verbs, about a guess and without, and the mean slope, beside dense float64."""
    x, y, bias = cloud(0, 2, 30, 3) + 1, cloud(1, 2, 40, 3) + 1, cloud(2, 2, 40)
    rows = x.clone().requires_grad_()
    logits = bias[..., None, :] - cost.pairs(rows, y) / 0.5
    mass, mean = logits.logsumexp(-1), logits.softmax(-1) @ y
    (slope,) = torch.autograd.grad(-0.5 * mass.sum(), rows)
    kernel = gibbs_kernel(x.to(dtype), y.to(dtype), cost, 0.5, backend=backend)
    near = mass.detach() + 0.3
    tol = {"rtol": 0, "atol": 1e-10 if dtype == torch.float64 else 2e-5}
    for found, expected in (
        (kernel.log_mass(bias), mass),
        (kernel.log_mass(bias, near), mass),
        (kernel.barycentre(bias), mean),
        (kernel.barycentre(bias, guess=near), mean),
        (kernel.mean_cost_gradient(bias, near), slope),
        (kernel.mean_cost_gradient(bias), slope),
        (
            kernel.T.log_mass(bias[..., :30]),
            (bias[..., :30, None] - cost.pairs(x, y) / 0.5).logsumexp(-2),
        ),
    ):
        torch.testing.assert_close(found.double(), expected.detach(), **tol)


@pytest.mark.parametrize("graph", [False, True], ids=["", "graph"])
@pytest.mark.parametrize("mask", [False, True], ids=["", "masked"])
def test_keops_takes_a_matrix_of_a_cost(cloud, keops, graph, mask):
    cost = Cost("metric", lambda x, y, a: ((x - y) @ a).abs().sum(-1), parameters={"a": MATRIX})
    x, y, bias = cloud(0, 30, 3), cloud(1, 40, 3), cloud(2, 40)
    logits = bias - cost.pairs(x, y) / 0.5
    if mask:
        logits.fill_diagonal_(-math.inf)
    rows = x.clone().requires_grad_(graph)
    kernel = gibbs_kernel(rows, y, cost, 0.5, mask_self=mask, backend="keops")
    found = kernel.log_mass(bias)
    torch.testing.assert_close(found.detach(), logits.logsumexp(-1))
    torch.testing.assert_close(kernel.barycentre(bias).detach(), logits.softmax(-1) @ y)
    if graph:
        (slope,) = torch.autograd.grad(found.sum(), rows)
        exact = gibbs_kernel(x, y, cost, 0.5, mask_self=mask, backend="dense")
        torch.testing.assert_close(slope, -2 * exact.mean_cost_gradient(bias))


@pytest.mark.parametrize("name", OTHERS)
def test_drifts_under_every_cost_are_those_of_dense_float64(cloud, name):
    x, y, cost = cloud(0, 20, 3) + 1, cloud(1, 25, 3) + 1, OTHERS[name]
    drift = kd.OneSidedDrift(0.5, cost=cost, mask_self=False)
    pull = [(-cost.pairs(x, z) / 0.5).softmax(-1) @ z for z in (y, x)]
    torch.testing.assert_close(drift(x, y), pull[0] - pull[1])
    solved = kd.SinkhornDrift(0.5, cost=cost, tol=1e-9).fit(x, y)
    assert bool(solved.converged)
    torch.testing.assert_close(solved().mean(0), y.mean(0) - x.mean(0), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("expression", "known"),
    [
        (lambda x, y: 3 * ((x - y) ** 2).sum(-1), {"curvature": 6.0, "lift": None}),
        (lambda x, y: ((x - y) ** 2).sum(-1).sqrt(), {"curvature": None}),
        (lambda x, y: (WEIGHTS * (x - y) ** 2).sum(-1), {"curvature": 1.0}),
        (lambda x, y: (((x - y) @ MATRIX) ** 2).sum(-1), {"curvature": 1.0}),
        (lambda x, y: 1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)), {"curvature": 1.0}),
    ],
)
def test_a_cost_written_by_hand_takes_the_path_of_the_one_it_is(cloud, expression, known):
    points, mine = cloud(0, 32, 3) + 1, Cost("mine", expression)
    found = recognised(mine, points)
    assert found.by_distance and found.symmetric and found.name == "mine"
    assert {name: getattr(found, name) for name in known} == {
        name: pytest.approx(value) if value else value for name, value in known.items()
    }
    x, y = cloud(1, 15, 3) + 1, cloud(2, 20, 3) + 1
    torch.testing.assert_close(found.pairs(x, y), mine.pairs(x, y))
    pull = [(-mine.pairs(x, z) / 0.5).softmax(-1) @ z for z in (y, x)]
    drift = kd.OneSidedDrift(0.5, cost=expression, mask_self=False)
    torch.testing.assert_close(drift(x, y), pull[0] - pull[1])


@pytest.mark.parametrize(
    "expression",
    [
        lambda x, y: (x - y).abs().sum(-1),
        lambda x, y: ((x - y) ** 2).sum(-1) + 1e-3 * (x - y).abs().sum(-1),
        lambda x, y: ((1 + ((x - y) ** 2).sum(-1) / 1e4).sqrt() - 1) * 1e4,
        lambda x, y: ((x - y) ** 2).sum(-1).clamp(max=100.0),
        lambda x, y: ((x - y) ** 2).sum(-1) + 1e-3 * (x**2).sum(-1),
        lambda x, y: -((x - y) ** 2).sum(-1),
    ],
)
def test_what_only_resembles_a_known_cost_is_not_taken_for_it(cloud, expression):
    found = recognised(Cost("mine", expression), cloud(0, 32, 3))
    assert not found.by_distance and found.expression is expression


@pytest.mark.parametrize(
    "points", [torch.zeros(5, 2), torch.eye(2)[:1] * torch.arange(5.0)[:, None]]
)
def test_points_at_one_place_or_on_a_line_do_not_decide_what_a_cost_is(points):
    """On a line L1 is a distance, and at one place every cost is every other."""

    def l1(x, y):
        return (x - y).abs().sum(-1)

    assert not recognised(Cost("L1", l1), points).by_distance
    z = torch.tensor([[3.0, 4.0]])
    field = kd.OneSidedDrift(1.0, cost=l1, velocity="gradient", mask_self=False).fit(points, points)
    side = field.data
    torch.testing.assert_close(
        side.kernel(z).log_mass(side.bias),
        (side.bias - l1(z[:, None], points).double()).logsumexp(-1),
        check_dtype=False,
        rtol=0,
        atol=1e-5,
    )


def test_a_cost_is_tried_where_every_cloud_lies(cloud):
    """Data far from all particles have a cost of their own here."""
    x, y = cloud(0, 40, 2), cloud(1, 50, 2) + 1e6

    def patchy(x, y):
        return ((x - y) ** 2).sum(-1) * (1 + ((x > 9e5) & (y > 9e5)).all(-1).to(x.dtype))

    assert not check_cost(as_cost(patchy), x, y).by_distance


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: pseudo_huber(0), "delta"),
        (lambda: pseudo_huber(float("nan")), "delta"),
        (lambda: power(2.5), "p"),
        (lambda: power(True), "p"),
        (lambda: mahalanobis(-torch.eye(2)), "matrix"),
        (lambda: mahalanobis(torch.ones(2, 3)), "matrix"),
        (lambda: mahalanobis(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), "matrix"),
        (lambda: mahalanobis(torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]])), "matrix"),
        (lambda: mahalanobis([1.0, 2.0]), "matrix"),
    ],
)
def test_costs_that_are_none_are_refused(make, argument):
    with pytest.raises(OptionError, match=argument):
        make()


def test_a_point_without_direction_is_moved_by_no_cosine(cloud):
    """The network whose output layer begins at 0 is all such points."""
    x, y = torch.zeros(3, 4, dtype=torch.float32), cloud(1, 6, 4).float()
    drift = kd.OneSidedDrift(0.1, cost="cosine", velocity="gradient", mask_self=False)
    assert not drift(x, y).any()
    free = x.clone().requires_grad_()
    kd.sinkhorn_divergence(free, y, 0.1, cost="cosine").backward()
    assert not free.grad.any()
    costs = as_cost("cosine").pairs(x[None], y[None])
    torch.testing.assert_close(costs, torch.full((1, 3, 6), 0.5))


@pytest.mark.parametrize("cost", [COSTS["cosine"], mahalanobis(torch.tensor([100.0, 1.0, 0.01]))])
def test_what_looks_at_costs_beside_the_kernels_lifts_points_too(cloud, cost):
    x, y = cloud(0, 30, 3), cloud(1, 40, 3) + 0.5
    expected = cost.pairs(x, y)
    torch.testing.assert_close(all_costs(x, y, cost), expected)
    torch.testing.assert_close(mean_cost(x, y, cost), expected.mean())
    relative = kd.SinkhornDrift(0.05, relative=True, cost=cost).fit(x, y)
    unit = (40 * expected.mean() + 30 * cost.pairs(x, x).mean()) / 70
    assert float(relative.data.tau) == pytest.approx(0.05 * float(unit), rel=1e-6)
    assert relative.couplings[0].half_steps <= 11


def test_a_matrix_of_another_dimension_is_refused(cloud):
    with pytest.raises(CostError, match=r"'mahalanobis' in d = 2 for points in d = 3"):
        kd.SinkhornDrift(1.0, cost=mahalanobis(torch.eye(2)))(cloud(0, 5, 3), cloud(1, 5, 3))


def test_want_of_memory_is_no_fault_of_a_cost(cloud):
    def greedy(x, y):
        if x.numel() > 200:
            raise torch.OutOfMemoryError("DefaultCPUAllocator: can't allocate memory")
        return (x - y).abs().sum(-1) ** 1.5

    with pytest.raises(OutOfMemoryError, match="backend"):
        kd.OneSidedDrift(1.0, cost=greedy, backend="dense")(cloud(0, 400, 3), cloud(1, 400, 3))


@dataclass
class Unhashable:
    power: float

    def __call__(self, x, y):
        return self.power * ((x - y).atan() ** 2).sum(-1)


def test_an_expression_need_not_be_hashable(cloud, keops):
    x, y, drift = cloud(0, 20, 2), cloud(1, 30, 2), kd.OneSidedDrift(1.0, cost=Unhashable(1.5))
    expected = replace(drift, backend="dense")(x, y)
    torch.testing.assert_close(replace(drift, backend="keops")(x, y), expected)


def test_trying_a_cost_on_a_batch_looks_at_every_problem_and_not_at_more_pairs(cloud):
    seen = []

    def rough(x, y):
        value = (x - y).abs().sum(-1) ** 1.5
        seen.append(value.numel())
        return value

    cost = kd.Cost("rough", rough)
    check_cost(cost, cloud(0, 128, 64, 3), cloud(1, 128, 64, 3))
    assert max(seen) <= (2 * 64) ** 2
    odd = cloud(0, 128, 64, 3)
    odd[77] *= 1e4

    def near(x, y):
        distance = (x - y).abs().sum(-1)
        return (distance**1.5).where(distance < 1e3, torch.inf)

    check_cost(kd.Cost("near", near), cloud(0, 128, 64, 3))
    with pytest.raises(CostError):
        check_cost(kd.Cost("near", near), odd)


def test_costs_beyond_what_formulas_can_hold_are_refused(cloud):
    with pytest.raises(TemperatureError, match="^tau"):
        kd.OneSidedDrift(1e-30)(cloud(0, 9, 2), cloud(1, 9, 2) + 3)
