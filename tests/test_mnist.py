"""The table of class-conditional digits, at the size of a test: 8×8 digits, few steps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from keodrift.drifts import SinkhornDrift, TwoSidedDrift
from keodrift.errors import OptionError
from keodrift.papers import FIGURES, reproduce
from keodrift.papers.mnist import PAPER, TAUS, MnistGrid, drift_of


def test_the_table_is_two_kernels_eight_temperatures_two_fields_three_seeds():
    cells = FIGURES["mnist"].cells()
    assert len(cells) == 2 * 8 * 2 * 3 and all(len(v) == len(TAUS) for v in PAPER.values())
    for cell in cells.values():
        drift = drift_of(cell)
        assert drift.relative and drift.cost.name == cell.cost
        if cell.method == "baseline":
            assert isinstance(drift, TwoSidedDrift) and drift.form == "joint" and drift.mask_self
        else:
            assert isinstance(drift, SinkhornDrift) and drift.half_steps == 41
            assert not drift.mask_self and drift.reach is None


def test_one_quick_run_is_judged_beside_real_latents(tmp_path, monkeypatch):
    monkeypatch.setenv("KEODRIFT_CACHE", str(tmp_path / "cache"))
    tiny = replace(FIGURES["mnist"].quick(), costs=("squared",), steps=3, epochs=(1, 1))
    monkeypatch.setitem(FIGURES, "mnist", replace(tiny))
    monkeypatch.setattr(MnistGrid, "quick", lambda self: self)
    report = reproduce("mnist", tmp_path, data="digits", quick=True, workers=0, progress=False)
    assert report.missing == 0 and [row["method"] for row in report.rows] == [
        "baseline",
        "Sinkhorn",
    ]
    assert "real latents" in report.page and "| 5.63 | 95.00 |" in report.page
    row = json.loads((tmp_path / "quick" / "Gaussian-baseline-tau0.1-seed0.json").read_text())
    assert 0 < row["accuracy_floor"] <= 1 and row["w2_squared_floor"] > 0
    assert len(row["w2_squared_by_class"]) == 10
    assert (tmp_path / "quick" / "Gaussian-baseline-tau0.1-seed0" / "samples.png").exists()
    assert (tmp_path / "mnist_quick.png").exists()


def test_claims_are_judged_by_the_rows():
    grid = MnistGrid(taus=(0.01, 0.1))
    rows = [
        {"cost": cost, "tau": tau, "method": method, "accuracy": right}
        for cost in ("squared", "euclidean")
        for tau, method, right in (
            (0.01, "baseline", 0.1), (0.1, "baseline", 0.95),
            (0.01, "Sinkhorn", 0.9995), (0.1, "Sinkhorn", 1.0),
        )
    ]  # fmt: skip
    assert set(grid.claims(rows).values()) == {True}
    rows[0]["accuracy"] = 0.5
    assert list(grid.claims(rows).values()).count(False) == 1
    assert None in grid.claims(rows[1:]).values()


def test_data_are_for_the_digits_alone(tmp_path):
    with pytest.raises(OptionError, match="data: got 'digits'"):
        reproduce("fig2", tmp_path, data="digits")
