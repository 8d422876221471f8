"""Costs written out coordinate by coordinate: formulas evaluated here, without a compiler."""

from __future__ import annotations

import math

import pytest
import torch

from keodrift.costs import COSTS, Cost, mahalanobis, power, pseudo_huber
from keodrift.reductions.engines.keops.symbols import traced, traced_distance

WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
MATRIX = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]], dtype=torch.float64)
EXPRESSIONS = {
    "L1": lambda x, y: (x - y).abs().sum(-1),
    "cosine": lambda x, y: 1 - (x * y).sum(-1) / ((x * x).sum(-1) * (y * y).sum(-1)).sqrt(),
    "not symmetric": lambda x, y: ((x - 2 * y) ** 2).sum(-1) / (1 + (y * y).sum(-1)),
    "functions of torch": lambda x, y: torch.sqrt(1 + torch.square(x - y).sum(dim=-1)),
    "logarithm": lambda x, y: (1 + ((x - y) ** 2).sum(-1) / 2).log() / 2,
    "powers": lambda x, y: ((x - y) ** 4).sum(-1) + ((x - y).abs() ** 2.5).sum(-1),
    "cut far away": lambda x, y: ((x - y) ** 2).sum(-1).clamp(min=-1e19, max=1e17),
    "cut": lambda x, y: ((x - y) ** 2).sum(-1).clamp(min=0.5, max=3.0),
    "waves": lambda x, y: ((x - y).sin() ** 2 + 1 - (x - y).cos()).sum(-1),
    "Laplacian": lambda x, y: (x - y).norm(dim=-1),
    "a tensor of its own": lambda x, y: (WEIGHTS * (x - y) ** 2).sum(-1),
    "a tensor on the right": lambda x, y: ((x - y) / WEIGHTS).abs().sum(-1),
    "a tensor less a point": lambda x, y: ((WEIGHTS - x) * (1 / (4 + y * y))).sum(-1),
    "exponential": lambda x, y: 1 - (-((x - y) ** 2).sum(-1)).exp(),
    "hinge": lambda x, y: (x - y).relu().sum(-1),
}
CASES = {name: Cost(name, expression) for name, expression in EXPRESSIONS.items()}
# What is lifted is quadratic among lifted points, and needs no formula of its own.
CASES |= {name: cost for name, cost in COSTS.items() if cost.lift is None}
CASES |= {"power": power(1.5), "pseudo-Huber": pseudo_huber(0.7)}
CASES |= {
    "weights": Cost(
        "weights", lambda x, y, w: (w * (x - y).abs()).sum(-1), parameters={"w": WEIGHTS}
    ),
    "matrix": Cost(
        "matrix", lambda x, y, a: (((x - y) @ a) ** 2).sum(-1).sqrt(), parameters={"a": MATRIX}
    ),
}


def evaluated(formula: str, x: torch.Tensor, y: torch.Tensor, constants) -> torch.Tensor:
    """What a KeOps formula means, on tensors."""
    words = {
        "IntCst": float,
        "IntInv": lambda n: 1 / n,
        "Zero": lambda n: 0.0,
        "Elem": lambda p, k: p[k],
        "P": constants,
        "Square": torch.square,
        "Sqrt": torch.sqrt,
        "Inv": lambda a: 1 / a,
        "Pow": lambda a, n: a**n,
        "Exp": torch.exp,
        "Log": torch.log,
        "Sin": torch.sin,
        "Cos": torch.cos,
        "Abs": torch.abs,
        "Sign": torch.sign,
        "ReLU": torch.relu,
        "IfElse": lambda a, one, other: torch.where(a >= 0, one, other),
        "Step": lambda a: (a >= 0).to(a.dtype),
        "SqDist": lambda a, b: (a - b).square().sum(-1),
        "X": x[:, None],
        "Y": y[None],
    }
    words |= {f"X{k}": x[:, None, k] for k in range(x.shape[1])}
    words |= {f"Y{k}": y[None, :, k] for k in range(y.shape[1])}
    value = eval(formula, {"__builtins__": {}}, words)
    return torch.as_tensor(value, dtype=x.dtype).expand(len(x), len(y))


@pytest.mark.parametrize("name", CASES)
def test_a_cost_written_out_is_the_cost_and_its_slopes_are_its_gradient(name, cloud) -> None:
    cost = CASES[name]
    x, y = cloud(0, 5, 3), cloud(1, 7, 3)
    found = traced(cost, 3)
    torch.testing.assert_close(evaluated(found.value, x, y, found.constants), cost.pairs(x, y))
    rows = x[:, None].expand(5, 7, 3).reshape(-1, 3).requires_grad_()
    pairs = torch.stack(
        [cost.pairs(r[None], q[None])[0, 0] for r, q in zip(rows, y.repeat(5, 1), strict=True)]
    )
    (gradient,) = torch.autograd.grad(pairs.sum(), rows)
    slopes = [evaluated(slope, x, y, found.constants) for slope in found.slopes]
    torch.testing.assert_close(torch.stack(slopes, -1).reshape(-1, 3), gradient)


@pytest.mark.parametrize("cost", [COSTS["euclidean"], pseudo_huber(0.3), power(0.5)], ids=str)
def test_slopes_at_coinciding_points_are_finite(cost, cloud) -> None:
    x = cloud(0, 4, 3)
    found = traced(cost, 3)
    for slope in found.slopes:
        assert torch.isfinite(evaluated(slope, x, x, found.constants)).all()
        assert evaluated(slope, x, x, found.constants).diagonal().abs().max() == 0


def test_a_cost_of_the_distance_is_written_for_vectors_too(cloud) -> None:
    x, y, cost = cloud(0, 4, 40), cloud(1, 6, 40), pseudo_huber(2.0)
    found = traced_distance(cost)
    torch.testing.assert_close(evaluated(found.value, x, y, found.constants), cost.pairs(x, y))


@pytest.mark.parametrize(
    "expression",
    [
        lambda x, y: x - y,
        lambda x, y: (x - y).tanh().sum(-1),
        lambda x, y: (x - y).sum(0),
        lambda x, y: (x - y).norm(p=1, dim=-1),
        lambda x, y: torch.sub(x, y, alpha=2).square().sum(-1),
        lambda x, y: ((x - y) @ [[1.0]]).sum(-1),
        lambda x, y: ((x - y) * torch.ones(2)).sum(-1),
        lambda x, y: ((x - y) * torch.ones(3, 3)).sum(-1),
        lambda x, y: 1.0,
    ],
)
def test_what_cannot_be_written_out_says_so(expression) -> None:
    with pytest.raises((TypeError, AttributeError)):
        traced(Cost("odd", expression), 3)


def test_constants_have_all_their_digits_at_any_default_dtype() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = traced(Cost("c", lambda x, y: (((x - y) / 0.3) ** 2 * 0.7).sum(-1)), 1).constants
    finally:
        torch.set_default_dtype(before)
    assert found == (1 / 0.3, 0.7)


def test_negative_powers_of_negative_numbers(cloud) -> None:
    x, y = cloud(0, 4, 2), cloud(1, 6, 2)
    cost = Cost("odd", lambda x, y: ((x - y) ** -3).sum(-1))
    found = traced(cost, 2)
    torch.testing.assert_close(evaluated(found.value, x, y, found.constants), cost.pairs(x, y))


def test_a_parameter_of_another_value_changes_no_formula(cloud) -> None:
    def cost(w):
        return Cost("w", lambda x, y, w: (w * (x - y).abs()).sum(-1), parameters={"w": w})

    one, other = traced(cost(WEIGHTS), 3), traced(cost(2 * WEIGHTS), 3)
    assert one.value == other.value
    assert one.constants != other.constants


def test_mahalanobis_is_the_quadratic_form(cloud) -> None:
    x, y = cloud(0, 5, 3), cloud(1, 7, 3)
    away = x[:, None] - y[None]
    expected = (away @ MATRIX * away).sum(-1) / 2
    torch.testing.assert_close(mahalanobis(MATRIX).pairs(x, y), expected)
    torch.testing.assert_close(mahalanobis(WEIGHTS).pairs(x, y), (WEIGHTS * away**2).sum(-1) / 2)
    assert math.isclose(float(COSTS["cosine"].pairs(x[:1], 3 * x[:1])), 0, abs_tol=1e-12)
