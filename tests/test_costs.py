"""Ground costs: their values, their scaling and what is refused."""

from __future__ import annotations

import math

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.checks import check_cost
from keodrift.costs import COSTS, Cost, as_cost, euclidean, half_squared, squared
from keodrift.errors import ArgumentError, CostError, OptionError


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
    assert as_cost("squared") is squared and set(COSTS) == {"half_squared", "squared", "euclidean"}
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
