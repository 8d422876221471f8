"""The table of class-conditional digits, at the size of a test: 8×8 digits, few steps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from keodrift.configuration import compose
from keodrift.drifts import SinkhornDrift, TwoSidedDrift
from keodrift.errors import OptionError
from keodrift.papers import FIGURES, reproduce
from keodrift.papers.mnist import PAPER, TAUS, MnistGrid
from keodrift.runs import build


def test_the_table_is_two_kernels_eight_temperatures_two_fields_three_seeds():
    cells = FIGURES["mnist"].cells()
    assert len(cells) == 2 * 8 * 2 * 3 and all(len(v) == len(TAUS) for v in PAPER.values())
    first = list(cells.values())[:32]
    for k, cell in enumerate(cells.values()):  # the other seeds are told the same but for theirs
        assert cell.overrides == (*first[k % 32].overrides[:-1], f"seed={k // 32}")
    for cell in first:
        config = compose("train", cell.overrides)
        drift = build(config.drift)
        assert drift.relative and drift.cost.name == cell.cost and drift.tau == cell.tau
        assert config.seed == cell.seed and config.guidance.unconditional == 16
        assert (config.batch, config.steps, config.data.epochs) == (64, 5000, 24)
        if cell.method == "baseline":
            assert isinstance(drift, TwoSidedDrift) and drift.form == "joint" and drift.mask_self
        else:
            assert isinstance(drift, SinkhornDrift) and drift.half_steps == 41
            assert not drift.mask_self and drift.reach is None


def test_where_the_images_are_is_told_to_every_run():
    (first, *_) = replace(FIGURES["mnist"], data="a, folder=/mnist.npz").cells().values()
    assert compose("train", first.overrides).data.images.source == "a, folder=/mnist.npz"
    (first, *_) = FIGURES["mnist"].quick().cells().values()
    images = compose("train", first.overrides).classifier.images
    assert images == {"_target_": "keodrift.data.load_digit_images"}


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
    folder = tmp_path / "quick" / "Gaussian-baseline-tau0.1-seed0"
    row = json.loads((folder / "result.json").read_text())
    assert 0 < row["accuracy_floor"] <= 1 and row["w2_squared_floor"] > 0
    assert len(row["w2_squared_by_class"]) == 10
    assert (folder / "samples.png").exists() and (folder / "network.safetensors").exists()
    assert json.loads((folder / "untrained.json").read_text())["w2_squared"] > row["w2_squared"]
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


def test_other_digits_are_no_cells_of_mnist(tmp_path):
    report = reproduce("mnist", tmp_path, data="digits", limit=0, progress=False)
    assert report.missing == 96 and (tmp_path / "mnist_digits.md").exists()
    assert not (tmp_path / "runs").exists()
    with pytest.raises(OptionError, match="^data: got '/mnist.npz', needs none with quick"):
        reproduce("mnist", tmp_path, data="/mnist.npz", quick=True)
