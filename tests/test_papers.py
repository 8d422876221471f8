"""The papers' figures: their cells, tables, claims, and the command that makes them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import keodrift as kd
from keodrift.cli import main
from keodrift.configuration import compose, config_dir
from keodrift.errors import OptionError, RunError
from keodrift.flow import simulate
from keodrift.papers import FIGURES, networks2d, reproduce
from keodrift.papers.flows import FlowGrid
from keodrift.papers.networks2d import CONVERGED, NetworkGrid

TINY = (
    "network.width=8",
    "network.blocks=1",
    "batch=32",
    "evaluate_samples=50",
    "steps=2",
    "evaluate_every=1",
)


@pytest.fixture
def tiny(monkeypatch):
    grid = NetworkGrid(
        "Tiny",
        ("two_moons", "eight_gaussians"),
        fields={
            "one-sided": ("one-sided", ("drift=one_sided",)),
            "converged": ("Sinkhorn", ("drift=sinkhorn",)),
        },
        taus=(0.1,),
        seeds=(0, 1),
        overrides=TINY,
    )
    monkeypatch.setitem(FIGURES, "tiny", grid)
    return grid


@pytest.mark.parametrize("name", networks2d.FIGURES)
def test_every_cell_is_a_config(name):
    grid = FIGURES[name]
    cells = list(grid.cells().values())
    assert len(cells) == 2 * 3 * 5 * 5
    smaller = replace(grid, experiment="paper_text").cells().values()
    assert compose("train", next(iter(smaller)).overrides).batch == 500
    for cell in [*cells[:24], *grid.quick().cells().values()]:
        config = compose("train", cell.overrides)
        assert config.data.name == cell.target and config.seed == cell.seed
        assert config.drift.tau == cell.tau and config.drift.cost == grid.cost
    assert compose("train", cells[0].overrides).batch == 1024
    assert compose("train", cells[0].overrides).steps == 5000


def test_the_papers_settings_are_experiments():
    text = compose("train", ["experiment=paper_text"])
    assert text.batch == 500 and text.network._target_.endswith(".MLP")
    assert text.optimizer._target_ == "torch.optim.Adam" and text.optimizer.lr == 1e-3
    public = compose("train", ["experiment=public_run", "data=spiral"])
    assert public.batch == 1024 and public.data.name == "spiral"
    assert public.network._target_.endswith(".ResidualMLP")
    assert public.precision == text.precision == "full"


def test_a_grid_is_run_cell_by_cell_and_goes_on(tiny, tmp_path, monkeypatch):
    first = reproduce("tiny", tmp_path, limit=3, workers=2, progress=False)
    assert first.missing == 5
    done = {
        path.parent: path.stat().st_mtime_ns for path in tmp_path.glob("public_run/*/result.json")
    }
    assert len(done) == 3
    second = reproduce("tiny", tmp_path, workers=2, progress=False)
    assert second.missing == 0 and len(second.rows) == 4
    for folder, stamp in done.items():  # what was there was not run again
        assert (folder / "result.json").stat().st_mtime_ns == stamp
    # Now nothing may be trained: the figure and the table come from the folders alone.
    monkeypatch.setattr(NetworkGrid, "work", None)
    third = reproduce("tiny", tmp_path, progress=False)
    assert third == second
    numbers = json.loads((tmp_path / "tiny_public_run.json").read_text())
    assert numbers == {key: getattr(second, key) for key in ("title", "missing", "rows", "claims")}
    for figure in ("tiny_public_run.png", "tiny_public_run_samples.png"):
        assert (tmp_path / figure).stat().st_size > 10_000
    row = next(r for r in second.rows if r["target"] == "eight_gaussians")
    runs = [
        json.loads(
            (
                tmp_path / "public_run" / f"eight_gaussians-one-sided-tau0.1-seed{s}/result.json"
            ).read_text()
        )
        for s in (0, 1)
    ]
    assert row["runs"] == 2 and row["w2_squared_mean"] == sum(r["w2_squared"] for r in runs) / 2
    table = (tmp_path / "tiny_public_run.md").read_text()
    assert "real against real" in table and "0 runs are missing" in table
    spent = sum(row["runs"] * row["seconds"] for row in second.rows) / 3600
    assert f"took {spent:.1f} h one after the other" in table


def test_an_interrupted_cell_goes_on_from_its_checkpoint(tiny, tmp_path):
    result, cell = next(iter(tiny.cells().items()))
    folder = (tmp_path / "public_run" / result).parent
    assert main(["train", *cell.overrides, "steps=1", f"output={folder}", "progress=false"]) == 0
    (folder / "result.json").unlink()
    reproduce("tiny", tmp_path, limit=1, workers=0, progress=False)
    assert json.loads((folder / "result.json").read_text())["steps"] == 2


def test_a_failed_cell_speaks(tiny, tmp_path, monkeypatch):
    broken = NetworkGrid("Broken", ("two_moons",), seeds=(0,), taus=(-1.0,), overrides=TINY)
    monkeypatch.setitem(FIGURES, "tiny", broken)
    with pytest.raises(RunError, match=r"two_moons-one-sided-tau-1-seed0.*: tau: got -1"):
        reproduce("tiny", tmp_path, workers=1, limit=1, progress=False)


def claims(rows):
    return FIGURES["fig2"].claims(rows)


def row(target, tau, field, w2, covered=8):
    return {
        "target": target, "tau": tau, "field": field,
        "w2_squared_mean": w2, "w2_squared_floor": 0.04, "covered": covered,
    }  # fmt: skip


def test_claims_are_judged_by_the_numbers():
    rows = [
        row("eight_gaussians", 0.1, "one-sided", 7.5, 2),
        row("eight_gaussians", 0.01, "one-sided", 8.0),
        row("eight_gaussians", 0.1, "two-sided", 2.5),
        row("eight_gaussians", 0.01, "two-sided", 0.5),
        row("eight_gaussians", 0.1, "Sinkhorn 20", 0.3),
        row("eight_gaussians", 0.01, "Sinkhorn 20", 1.5),
        row("checkerboard", 0.1, "one-sided", 0.1),
        row("checkerboard", 0.1, "two-sided", 0.15),
        row("checkerboard", 0.1, "Sinkhorn 20", 0.12),
    ]
    whole = list(claims(rows).values())
    # collapse; below 1, covered, stable: 20 sweeps and converged; worse at small τ; equality
    assert whole == [True, True, True, False, None, None, None, True, False, True, None]
    rows[0]["w2_squared_mean"], rows[4]["covered"], rows[6]["w2_squared_mean"] = 6.4, 7.8, 0.21
    whole[0] = whole[2] = whole[-2] = False  # 0.09 apart is more than twice the floor
    assert list(claims(rows).values()) == whole
    assert claims([]).keys() == claims(rows).keys()
    assert set(claims([]).values()) == {None}


def test_what_falls_with_the_temperature_needs_two_of_them():
    rows = [
        row("eight_gaussians", 0.1, field, 0.3)
        for field in ("one-sided", "two-sided", "Sinkhorn 20", CONVERGED)
    ]
    falling = [seen for claim, seen in claims(rows).items() if "falls" in claim or "0.01" in claim]
    assert falling == [None] * 4


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["fig3"], "fig3"),
        ([], "figure"),
        (["fig2", "workers=none"], "workers"),
        (["fig2", "limit=-1"], "limit"),
        (["fig2", "colour=red"], "colour"),
        (["fig2", "experiment=mine"], "mine"),
        (["fig5", "experiment=paper_text"], "paper_text"),
        (["fig2", "fig6"], "fig2 fig6"),
        (["fig2", "--quik"], "--quik: got"),
        (["fig2", "quick=perhaps"], "perhaps"),
    ],
)
def test_bad_commands_end_in_one_sentence(arguments, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    said = capsys.readouterr().err
    assert word in said and len(said.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_failed_cell_ends_the_command_in_one_sentence(tiny, tmp_path, capsys, monkeypatch):
    broken = NetworkGrid("Broken", ("two_moons",), seeds=(0,), taus=(-1.0,), overrides=TINY)
    monkeypatch.setitem(FIGURES, "tiny", broken)
    command = ["reproduce", "tiny", "workers=1", "limit=1", "progress=false"]
    assert main([*command, f"output={tmp_path}"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("keodrift: ") and "two_moons-one-sided-tau-1-seed0" in said
    assert len(said.splitlines()) == 1


def test_settings_do_not_pass_for_each_other(tiny, tmp_path, monkeypatch):
    anywhere = tuple(word for word in TINY if not word.startswith("network."))
    monkeypatch.setitem(FIGURES, "tiny", replace(tiny, overrides=anywhere))
    for options in ({}, {"experiment": "paper_text"}, {"quick": True}):
        reproduce("tiny", tmp_path, limit=1, workers=0, progress=False, **options)
    names = ("public_run", "paper_text", "public_run_quick")
    for name in names:
        assert len(list(tmp_path.glob(f"{name}/*/result.json"))) == 1
        assert (tmp_path / f"tiny_{name}.md").exists()


def test_some_lines_are_runs_of_the_whole_figure(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(FIGURES, "tiny", tiny)
    how = {"workers": 0, "progress": False}
    part = reproduce("tiny", tmp_path, fields=["Sinkhorn", "Sinkhorn"], limit=1, **how)
    assert {row["field"] for row in part.rows} == {"converged"}
    assert (tmp_path / "tiny_public_run_Sinkhorn.md").exists()
    whole = reproduce("tiny", tmp_path, limit=0, **how)
    assert sum(row["runs"] for row in whole.rows) == 1
    with pytest.raises(OptionError, match=r"fields.*'sinkhorn'.*Sinkhorn"):
        reproduce("tiny", tmp_path, fields=["sinkhorn"], **how)
    with pytest.raises(OptionError, match="'Sinkhorn', needs a list of some of one-sided"):
        reproduce("tiny", tmp_path, fields="Sinkhorn", **how)
    with pytest.raises(OptionError, match="fig5 is drawn as a whole"):
        reproduce("fig5", tmp_path, fields=["sinkhorn"], **how)


def test_runs_are_found_where_they_have_always_been():
    names = list(FIGURES["fig2"].cells())
    fields = ("one-sided", "two-sided", "Sinkhorn_20", "Sinkhorn", "recommended")
    assert names[:5] == [f"eight_gaussians-{f}-tau0.01-seed0/result.json" for f in fields]


def test_experiments_are_configs():
    known = {path.stem for path in (config_dir() / "experiment").glob("*.yaml")}
    assert set(networks2d.EXPERIMENTS) < known


def test_unknown_figures_are_refused(tmp_path):
    with pytest.raises(OptionError, match="fig9"):
        reproduce("fig9", tmp_path)


@pytest.mark.parametrize(
    ("words", "setting"),
    [([], "public_run_quick"), (["experiment=paper_text"], "paper_text_quick")],
)
def test_one_cell_of_the_quick_figure(words, setting, tmp_path, capsys):
    """What a continuous integration runs: a cell of the paper's grid at a minute's size."""
    command = ["reproduce", "fig2", "--quick", "limit=1", "workers=0", f"output={tmp_path}"]
    assert main([*command, *words]) == 0
    said = capsys.readouterr().out
    assert "9 runs are missing" in said and "not measured" in said
    # A short run is no run of the full figure.
    assert len(list(tmp_path.glob(f"{setting}/*/result.json"))) == 1
    assert (tmp_path / f"fig2_{setting}.md").exists()
    assert not (tmp_path / "public_run").exists()


def test_the_laplacian_figures_are_not_judged_by_claims_about_the_gaussian(tmp_path):
    for name in ("fig7", "fig8"):
        assert FIGURES[name].claims(FIGURES[name].rows(tmp_path)) == {}
    assert len(FIGURES["fig2"].claims(FIGURES["fig2"].rows(tmp_path))) == 11


def test_flows_have_the_papers_columns_and_temperatures():
    grid = FIGURES["fig5"]
    assert (grid.points, grid.step_size, grid.steps) == (100, 0.1, 500)
    assert grid.taus == (0.01, 0.1, 1.0, 10.0)
    cells = grid.cells()
    assert len(cells) == 6 * 4
    for cell in cells.values():
        assert cell.drift.tau == cell.tau and cell.drift.cost.name == "squared"
    assert cells["one-sided_mask-tau0.01.npz"].drift.mask_self
    assert not cells["two-sided-tau0.01.npz"].drift.mask_self
    assert cells["Sinkhorn_100-tau1.npz"].drift.half_steps == 201


def test_a_figure_of_flows_goes_on_where_it_stopped(tmp_path, monkeypatch):
    grid = FlowGrid("Tiny", taus=(0.1, 1.0), points=12, steps=6, keep=2)
    monkeypatch.setitem(FIGURES, "tiny", grid)
    first = reproduce("tiny", tmp_path, limit=10, workers=0, progress=False)
    assert first.missing == 2
    assert [seen is None for seen in first.claims.values()] == [False, True]
    second = reproduce("tiny", tmp_path, workers=2, progress=False)
    assert second.missing == 0
    assert second.rows[:10] == first.rows[:10]
    for row in second.rows:
        assert row["w2_squared"] >= 0 and 1 <= row["neighbours"] <= 12
    with np.load(tmp_path / "runs" / "Sinkhorn-tau0.1.npz") as stored:
        assert stored["trajectory"].shape == (4, 12, 2)
        start, data, _ = grid.clouds()
        assert np.array_equal(stored["trajectory"][0], start.numpy())
        moved = simulate(kd.SinkhornDrift(0.1, cost="squared"), start, data, 0.1, 6)
        assert np.allclose(stored["trajectory"][-1], moved.final.numpy(), atol=1e-5)
    assert (tmp_path / "tiny.png").stat().st_size > 10_000
    assert (tmp_path / "tiny.gif").stat().st_size > 10_000
    table = (tmp_path / "tiny.md").read_text()
    assert "effective neighbours" in table and "| claim | seen |" in table


def test_claims_about_flows_compare_with_the_best_other():
    def rows(**w2):
        names = {"a": "one-sided", "b": "two-sided", "s": "Sinkhorn 100"}
        return [{"tau": 1.0, "field": names[key], "w2_squared": value} for key, value in w2.items()]

    def seen(rows):
        return list(FIGURES["fig5"].claims(rows).values())

    assert seen(rows(a=0.3, b=0.2, s=0.205)) == [True]
    assert seen(rows(a=0.3, b=0.2, s=0.22)) == [False]
    assert seen([*rows(a=0.3, b=0.2), {"tau": 1.0, "field": "Sinkhorn 100"}]) == [None]
