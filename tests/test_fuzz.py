"""Random calls are answered or refused; benchmarks/fuzz.py makes more of them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import keodrift as kd

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("fuzz")


def test_random_calls_are_answered_or_refused(fuzz):
    verdicts = {number: fuzz.call(0, number) for number in range(400)}
    assert {n: why for n, (verdict, why) in verdicts.items() if verdict == "failed"} == {}
    answered = [why for verdict, why in verdicts.values() if verdict == "answered"]
    assert len(answered) > 0.8 * len(verdicts) and set(answered) == set(fuzz.ACTIONS)


def test_no_coupling_has_a_larger_marginal_error_than_it_reports(fuzz):
    verdicts = {number: fuzz.check_fit(fuzz.draw_fit(0, number)) for number in range(60)}
    assert {n: why for n, (verdict, why) in verdicts.items() if verdict == "failed"} == {}


def test_a_case_is_the_same_every_time(fuzz):
    first, again = fuzz.draw(0, 7), fuzz.draw(0, 7)
    assert str(first) == str(again) != str(fuzz.draw(1, 7))
    assert all(torch.equal(v, again.tensors()[k]) for k, v in first.tensors().items())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: x / 0, "V is not finite"),
        (lambda x: x[1:], "V has another shape"),
        (lambda x: x.double(), "V has another dtype"),
        (lambda x: x.add_(1), "x was changed"),
    ],
)
def test_the_judge_sees_what_is_wrong(fuzz, spoil, said):
    x = torch.ones(3, 2)
    case = fuzz.Case("spoilt", kd.OneSidedDrift(1.0), x, x.clone(), x.clone())

    def spoilt(case):
        yield "V", spoil(case.x), x.shape, x.dtype

    assert fuzz.judge(case, {"spoilt": spoilt}) == said


def test_the_true_error_is_that_of_the_plan(fuzz):
    """An unsolved plan leaves the far one of two data points without its half."""
    x, y = torch.tensor([[0.0], [0.0]]), torch.tensor([[0.0], [100.0]])
    (coupling, _) = kd.SinkhornDrift(1.0, half_steps=1).fit(x, y).couplings
    true, logit = fuzz.true_error(coupling)
    assert true == 1.0 == pytest.approx(float(coupling.marginal_error), rel=1e-3) and logit < 1e-3


def test_the_true_error_of_a_relaxed_plan_is_relative_to_its_mass(fuzz):
    """From g = 0 at ρ = τ: rows keep e^(−f) = √½ of their mass, all of it on the near point."""
    x, y = torch.tensor([[0.0], [0.0]]), torch.tensor([[0.0], [100.0]])
    (coupling, _) = kd.SinkhornDrift(1.0, reach=1.0, half_steps=1).fit(x, y).couplings
    expected = abs(0.5**0.5 - 0.5) + 0.5
    assert fuzz.true_error(coupling)[0] == pytest.approx(expected, rel=1e-12)
    assert float(coupling.marginal_error) == pytest.approx(expected, rel=1e-3)


def test_some_drifts_have_a_reach(fuzz):
    """And what else a case draws does not depend on it."""
    drifts = [fuzz.draw(0, number).drift for number in range(200)]
    drifts += [fuzz.draw_fit(0, number).drift for number in range(50)]
    relaxed = [drift for drift in drifts if getattr(drift, "reach", None) is not None]
    assert {drift.masses for drift in relaxed} == {"unit", "gradient"}
    assert {drift.half_steps is None for drift in relaxed} == {True, False}
