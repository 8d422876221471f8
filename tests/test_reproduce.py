"""The grids behind the papers' figures: cells, resuming, table and claims."""

from __future__ import annotations

import json

import pytest

from keodrift import reproduce as module
from keodrift.cli import compose, main
from keodrift.errors import OptionError
from keodrift.reproduce import FIGURES, Grid, claims, reproduce

TINY = (
    "generator.width=8",
    "generator.blocks=1",
    "data.batch=32",
    "evaluate_samples=50",
    "steps=2",
    "evaluate_every=1",
)


@pytest.fixture
def tiny(monkeypatch):
    grid = Grid(
        "Tiny",
        ("two_moons", "eight_gaussians"),
        fields={"one-sided": "one_sided", "Sinkhorn": "sinkhorn"},
        taus=(0.1,),
        seeds=(0, 1),
        overrides=("experiment=public_run", *TINY),
    )
    monkeypatch.setitem(FIGURES, "tiny", grid)
    return grid


@pytest.mark.parametrize("name", FIGURES)
def test_every_cell_is_a_config(name):
    grid = FIGURES[name]
    cells = list(grid.cells())
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 3 * 4 * 5
    for cell in [*cells[:24], *grid.quick().cells()]:
        config = compose("train", cell.overrides)
        assert config.data.target == cell.target and config.seed == cell.seed
        assert config.drift.tau == cell.tau and config.drift.cost == grid.cost
    assert compose("train", cells[0].overrides).data.batch == 1024
    assert compose("train", cells[0].overrides).steps == 5000


def test_the_papers_settings_are_experiments():
    text = compose("train", ["experiment=paper_text"])
    assert text.data.batch == 500 and text.generator._target_.endswith(".MLP")
    assert text.optimizer._target_ == "torch.optim.Adam" and text.optimizer.lr == 1e-3
    public = compose("train", ["experiment=public_run", "data=spiral"])
    assert public.data.batch == 1024 and public.data.target == "spiral"
    assert public.generator._target_.endswith(".ResidualMLP")


def test_a_grid_is_run_cell_by_cell_and_goes_on(tiny, tmp_path, monkeypatch):
    first = reproduce("tiny", tmp_path, limit=3, workers=2, progress=False)
    assert first["missing"] == 5
    done = {path.parent: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    assert len(done) == 3
    second = reproduce("tiny", tmp_path, workers=2, progress=False)
    assert second["missing"] == 0 and len(second["rows"]) == 4
    for folder, time in done.items():  # what was there was not run again
        assert (folder / "result.json").stat().st_mtime_ns == time
    # Now nothing may be trained: the figure and the table come from the folders alone.
    monkeypatch.setattr(module, "_train", None)
    third = reproduce("tiny", tmp_path, progress=False)
    assert third == second
    assert json.loads((tmp_path / "table.json").read_text()) == second
    assert (tmp_path / "tiny.png").stat().st_size > 10_000
    row = next(r for r in second["rows"] if r["target"] == "eight_gaussians")
    runs = [
        json.loads(
            (
                tmp_path / "runs" / f"eight_gaussians-one-sided-tau0.1-seed{s}/result.json"
            ).read_text()
        )
        for s in (0, 1)
    ]
    assert row["runs"] == 2 and row["w2_mean"] == sum(r["w2"] for r in runs) / 2
    assert "real against real" in (tmp_path / "table.md").read_text()


def test_an_interrupted_cell_goes_on_from_its_checkpoint(tiny, tmp_path):
    cell = next(iter(tiny.cells()))
    folder = tmp_path / "runs" / cell.name
    assert main(["train", *cell.overrides, "steps=1", f"output={folder}", "progress=false"]) == 0
    (folder / "result.json").unlink()
    reproduce("tiny", tmp_path, limit=1, progress=False)
    assert json.loads((folder / "result.json").read_text())["steps"] == 2


def test_a_failed_cell_speaks(tiny, tmp_path, monkeypatch):
    broken = Grid("Broken", ("two_moons",), seeds=(0,), taus=(-1.0,), overrides=TINY)
    monkeypatch.setitem(FIGURES, "tiny", broken)
    with pytest.raises(RuntimeError, match=r"two_moons-one-sided-tau-1-seed0: .*tau"):
        reproduce("tiny", tmp_path, workers=1, limit=1, progress=False)


def test_claims_are_judged_by_the_numbers():
    def row(target, tau, field, w2, covered=8):
        return {
            "target": target, "tau": tau, "field": field, "w2_mean": w2, "covered": covered,
        }  # fmt: skip

    rows = [
        row("eight_gaussians", 0.1, "one-sided", 7.5, 2),
        row("eight_gaussians", 0.01, "one-sided", 0.5),
        row("eight_gaussians", 0.1, "Sinkhorn 20", 0.3),
        row("checkerboard", 0.1, "one-sided", 0.1),
        row("checkerboard", 0.1, "Sinkhorn 20", 0.12),
    ]
    assert list(claims(rows).values()) == [True] * 5
    rows[2]["covered"] = 7.8
    assert list(claims(rows).values())[2] is False
    assert claims([]).keys() == claims(rows).keys()
    assert list(claims(rows[:1]).values())[1] is None


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["fig3"], "fig3"),
        ([], "figure"),
        (["fig2", "workers=none"], "workers"),
        (["fig2", "limit=0"], "limit"),
        (["fig2", "colour=red"], "colour"),
    ],
)
def test_bad_commands_end_in_one_sentence(arguments, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    said = capsys.readouterr().err
    assert word in said and len(said.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_unknown_figures_are_refused(tmp_path):
    with pytest.raises(OptionError, match="fig9"):
        reproduce("fig9", tmp_path)
