"""The numbers behind the results page: kept beside it, and brought back."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "results" / "publish.py"


@pytest.fixture
def publish(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("publish", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(module, "CELLS", tmp_path / "cells")
    return module


def test_finished_cells_are_kept_and_brought_back(publish):
    runs = publish.OUTPUTS / "fig2" / "paper_text"
    looks = '{"step": 1}\n{"step": 2, "w2_squared": 0.5}\n'
    for path, text in {
        "done/result.json": '{"w2_squared": 0.5}',
        "done/metrics.jsonl": looks,
        "begun/metrics.jsonl": looks,
        "../paper_text_quick/done/result.json": "{}",
    }.items():
        (runs / path).parent.mkdir(parents=True, exist_ok=True)
        (runs / path).write_text(text)
    publish.keep("fig2")
    (runs / "done" / "result.json").write_text("mine")
    (runs / "done" / "metrics.jsonl").unlink()
    publish.restore()
    assert (runs / "done" / "result.json").read_text() == "mine"  # what is there stays
    assert (runs / "done" / "metrics.jsonl").read_text() == '{"step": 2, "w2_squared": 0.5}\n'
    assert len(publish.read(publish.CELLS / "fig2.jsonl")) == 2
