"""The demo and the examples run as a user would run them, at their smallest sizes."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        capture_output=True, text=True, check=False, cwd=cwd,
    )  # fmt: skip


def test_quick_demo_writes_numbers_and_figures(tmp_path):
    done = run("demo.py", "quick=true", f"output={tmp_path}/out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    numbers = json.loads((out / "metrics.json").read_text())
    assert sorted(numbers) == ["digits", "flow", "scale", "toy"]
    assert numbers["scale"]["dense_matrix_bytes"] == 4 * 2000**2
    assert numbers["scale"]["converged"] is True
    assert numbers["flow"]["one-sided"]["left"] == pytest.approx(0.9)
    assert len(numbers["digits"]["w2_squared_by_class"]) == 10
    for name in ("toy_samples", "toy_curves", "toy_field", "digits", "flow"):
        assert (out / f"{name}.png").stat().st_size > 5000
    assert 5000 < (out / "flow.gif").stat().st_size < 1_500_000
    assert "metrics.json" in done.stdout.splitlines()[-4]
    assert not list(out.glob(".draft-*"))


def test_one_part_keeps_the_numbers_of_the_others(tmp_path):
    (tmp_path / "metrics.json").write_text('{"scale": {"points": 7}}')
    done = run("demo.py", "quick=true", "part=flow", f"output={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["scale"] == {"points": 7} and "flow" in numbers


def test_quickstart(tmp_path):
    done = run("quickstart.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mean drift" in done.stdout


@pytest.fixture
def example(monkeypatch):
    """Imports an example as a module."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_only_the_converged_field_moves_mass_across_a_gap(example):
    """90/10 on two modes, data 50/50, τ far below the gap: the sentence the library rests on."""
    script = example("wrong_masses")

    def at_the_end(field: str, modes: int, d: int) -> dict:
        cell = script.Cell("particles", modes, d, 120, 0.1, field, 60, 0.2)
        return script.particles(cell)

    for modes, d in ((2, 2), (8, 2), (2, 32)):
        start = float((script.wrong(modes) - 1 / modes).abs().sum() / 2)
        converged = at_the_end("converged", modes, d)
        assert converged["wrong"] <= 0.02, (modes, d)
        assert at_the_end("one-sided", modes, d)["wrong"] >= 0.9 * start
    blind = at_the_end("20 sweeps", 2, 2)
    assert (
        blind["wrong"] >= 0.35
        and blind["w2_squared"] > 100 * at_the_end("converged", 2, 2)["w2_squared"]
    )


def test_wrong_masses_writes_figure_and_table(tmp_path):
    done = run("wrong_masses.py", "quick=true", "workers=0", f"output={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("particles", "network"):
        assert (tmp_path / f"wrong_masses_{part}.png").stat().st_size > 10_000
    table = (tmp_path / "wrong_masses.md").read_text()
    assert table.count("| converged |") == 3 and table in done.stdout
    assert len(list(tmp_path.glob("cells/*.json"))) == 4 + 2 + 3


def test_large_batch_writes_figure_and_tables(tmp_path):
    words = ("quick=true", "workers=0", "noise.taus=[0.1,1.0]", f"output={tmp_path}")
    done = run("large_batch.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "large_batch.png").stat().st_size > 10_000
    page = (tmp_path / "large_batch.md").read_text()
    for title in ("against the truth", "Noise", "Networks", "Wrong mode masses"):
        assert title in page
    assert page.count("| 1 | converged |") == 2  # one row a batch


def test_whole_batch_tells_its_pace_and_peak(tmp_path):
    done = run("whole_batch.py", "batch=200", "steps=2", f"output={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "whole_batch.md").read_text()
    assert "| 200 | 2 |" in page and page in done.stdout


@pytest.mark.parametrize(
    ("name", "words", "cells"),
    [
        ("equilibrium", ("quick=true",), 2 * 4),
        ("which_training", ("quick=true", "few=true"), 2 * 6 + 1),
        ("latent_training", ("quick=true",), 2 * 3),
        ("ffhq_latents", ("quick=true", "fields=['two-sided']"), 2),
    ],
)
def test_studies_of_training_write_figure_and_table(name, words, cells, tmp_path):
    done = run(f"{name}.py", *words, "workers=0", f"output={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (figure,), (table,) = (tmp_path.glob(f"{name}*.{kind}") for kind in ("png", "md"))
    assert figure.stat().st_size > 10_000 and table.read_text() in done.stdout
    assert len(list((tmp_path / "cells").iterdir())) == cells


SCRIPTS = [
    *(EXAMPLES / f"{name}.py" for name in (
        "demo", "wrong_masses", "large_batch", "whole_batch", "equilibrium", "which_training",
        "latent_training", "ffhq_latents",
    )),
    *(EXAMPLES.parent / "benchmarks" / f"{name}.py" for name in (
        "costs", "field_error", "fuzz", "memory", "passes", "scaling", "solver", "step",
    )),
]  # fmt: skip


def refused(script: Path, word: str, monkeypatch, capsys) -> str:
    """What a script says of a wrong word, before it does anything."""
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [script.name, word])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("word", ["taus_=[1]", "output=[everything]", "quick", "--device"])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_mistake_on_the_command_line_ends_in_one_sentence(
    script, word, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    said = refused(script, word, monkeypatch, capsys)
    assert said.startswith(f"{script.name}: {word.split('=')[0]}: got ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("examples/demo.py", "part=magic"),
        ("examples/wrong_masses.py", "parts=[magic]"),
        ("examples/large_batch.py", "parts=[magic]"),
        ("examples/ffhq_latents.py", "data=[magic]"),
        ("benchmarks/field_error.py", "problems=[magic]"),
        ("benchmarks/solver.py", "problems=[magic]"),
        ("benchmarks/passes.py", "costs=[magic]"),
        ("benchmarks/costs.py", "costs=[magic]"),
        ("benchmarks/memory.py", "backends=[magic]"),
    ],
)
def test_an_unknown_choice_is_one_sentence(script, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = refused(EXAMPLES.parent / script, word, monkeypatch, capsys)
    assert "'magic'" in said and "of " in said and not list(tmp_path.iterdir())
