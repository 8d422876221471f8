"""The study of gradient flows in the plane: its cells, how it goes on, its claims."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

import keodrift as kd
from keodrift.cli import main
from keodrift.data import get_target
from keodrift.papers import FIGURES, gradient_flows, reproduce
from keodrift.papers.gradient_flow_lines import LINES, TAUS
from keodrift.papers.gradient_flows import TARGETS, Cell, GradientFlowGrid
from keodrift.tasks import PlanarTask

SIX = ["KL", "MMD", "Sinkhorn 100", "proxy", "DA2", "sliced"]
TINY = GradientFlowGrid(
    "Tiny",
    targets=("two_moons", "spiral"),
    values={"KL": (0.1, 1.0), "sliced": (1, 10), "recommended": (0.1,)},
    seeds=(0, 1),
    steps=2,
    batch=16,
)


def test_cells_are_the_papers_grid_seed_by_seed():
    grid = FIGURES["flows"]
    cells = list(grid.cells().values())
    assert [flow for flow, line in LINES.items() if line.paper] == SIX
    assert {cell.target for cell in cells} == set(TARGETS) and len(TARGETS) == 5
    a_seed = 5 * sum(len(line.values) for line in LINES.values())
    assert [cell.seed for cell in cells] == [seed for seed in grid.seeds for _ in range(a_seed)]
    assert pickle.loads(pickle.dumps(cells[0])) == cells[0]
    assert max(TAUS) / min(TAUS) >= 1e6


def test_lines_make_the_drifts_they_name():
    task = PlanarTask(get_target("two_moons"), seed=3)
    made = {flow: [line.make(v, task) for v in line.values] for flow, line in LINES.items()}
    assert [drift.bandwidth**2 for drift in made["MMD"]] == pytest.approx(TAUS)
    for flow in ("KL", "Sinkhorn 100", "proxy", "DA2"):
        assert [drift.tau for drift in made[flow]] == list(TAUS)
        assert made[flow][0].cost.name == "half_squared"
    assert made["Sinkhorn 100"][0].half_steps == 2 * 100 + 1
    assert made["DA2"][0].form == "joint" and made["DA2"][0].mask_self
    assert [drift.directions for drift in made["sliced"]] == [1, 10, 100]
    assert made["recommended"][0].reach == task.reach()
    assert isinstance(made["critic"][0], kd.CriticDrift)


@pytest.fixture
def few_judges(monkeypatch):
    monkeypatch.setattr(gradient_flows, "JUDGED", 60)


@pytest.mark.usefixtures("few_judges")
def test_a_grid_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setitem(FIGURES, "tiny", TINY)
    first = reproduce("tiny", tmp_path, limit=12, workers=0, progress=False)
    assert first.missing == 8
    second = reproduce("tiny", tmp_path, workers=0, progress=False)
    assert second.missing == 0 and len(second.rows) == 10
    assert [row["runs"] for row in second.rows] == [2] * 10
    monkeypatch.setattr(GradientFlowGrid, "work", None)  # now nothing may be trained
    assert reproduce("tiny", tmp_path, progress=False) == second
    for figure in ("tiny.png", "tiny_samples.png"):
        assert (tmp_path / figure).stat().st_size > 10_000
    table = (tmp_path / "tiny.md").read_text()
    assert "0 of 20 runs are missing" in table and "real samples" in table
    row = second.rows[0]
    assert row["mmd_squared_low"] <= row["mmd_squared"] <= row["mmd_squared_high"]
    assert all(math.isfinite(row[name]) for row in second.rows for name in row if "squared" in name)


@pytest.mark.usefixtures("few_judges")
def test_a_cell_is_decided_by_its_seed(tmp_path):
    found = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        cell = Cell("two_moons", "critic", 0.1, seed, steps=3, batch=16)
        GradientFlowGrid.work(cell, tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz") as stored:
            found.append(stored["samples"])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def rows(target="spiral", **scores):
    """One row a flow and value; 1 is as good as real data."""
    names = {flow.replace(" ", "_"): flow for flow in SIX}
    return [
        {"target": target, "flow": names[flow], "value": v, "mmd_squared": score,
         "mmd_squared_floor": 1.0}
        for flow, values in scores.items()
        for v, score in zip(LINES[names[flow]].values, values, strict=True)
    ]  # fmt: skip


def seen(rows, target="spiral"):
    claims = FIGURES["flows"].claims(rows)
    return [value for claim, value in claims.items() if claim.startswith(target)]


GOOD = {
    "KL": (20, 9, 3, 1, 1, 5, 9),
    "MMD": (9, 9, 3, 1.5, 1, 5, 9),
    "Sinkhorn_100": (1.9, 1, 0.5, 1, 1, 5, 9),
    "proxy": (9, 9, 1.5, 1, 1, 5, 9),
    "DA2": (9, 9, 3, 1, 1, 5, 9),
    "sliced": (1.5, 1, 1.9),
}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, None),
        ({"MMD": (9, 9, 9, 9, 2.1, 9, 9)}, 0),  # nothing is closer to data than data: 0.5 is 1
        ({"Sinkhorn_100": (2.1, 1, 1, 1, 1, 5, 9)}, 1),
        ({"proxy": (2, 9, 1.5, 1, 1, 5, 9)}, 2),
        ({"Sinkhorn_100": (1, 1, 1, 1, 1, 1, 2)}, 3),
        ({"proxy": (9, 9, 3, 1, 1, 5, 9)}, 4),
        ({"KL": (10, 9, 3, 1, 1, 5, 9)}, 5),
        ({"sliced": (2.1, 1, 1)}, 6),
    ],
)
def test_claims_are_judged_by_the_numbers(change, wrong):
    assert seen(rows(**GOOD | change)) == [k != wrong for k in range(7)]


def test_what_was_not_run_is_not_judged():
    assert seen([]) == [None] * 7
    whole = rows(**GOOD)
    assert seen(whole, "two_moons") == [None] * 7
    kept = [row for row in whole if (row["flow"], row["value"]) != ("proxy", TAUS[0])]
    assert seen(kept) == [None, True, None, True, None, True, True]


def test_one_cell_of_the_quick_study(tmp_path, capsys):
    command = ["reproduce", "flows", "--quick", "limit=1", "workers=0", f"output={tmp_path}"]
    assert main([*command, "progress=false"]) == 0
    said = capsys.readouterr().out
    assert "9 of 10 runs are missing" in said and "not measured" in said
    assert len(list(tmp_path.glob("quick/*.npz"))) == 1
