"""Studies: cells that are run once, and the report that comes from their files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from keodrift.errors import RunError
from keodrift.files import write_json
from keodrift.studies import Study, run_missing, run_study


@dataclass(frozen=True)
class Squares(Study[int]):
    """The squares of three numbers, and who computed them."""

    title: str = "Squares"

    def cells(self):
        return {f"{k}.json": k for k in (1, 2, 3)}

    @staticmethod
    def work(spec, path):
        write_json(path, {"square": spec * spec, "process": os.getpid()})

    def table(self, rows):
        return "\n".join(["| square |", "|---|", *(f"| {row['square']} |" for row in rows)])

    def draw(self, rows, folder, stem):
        stem.with_suffix(".txt").write_text(f"{len(list(folder.iterdir()))} cells")

    def claims(self, rows):
        found = [row["square"] for row in rows]
        return {"the last is nine": found[-1] == 9 if len(found) == 3 else None, "one": 1 in found}


def test_a_study_goes_on_where_it_stopped(tmp_path):
    stem, folder = tmp_path / "squares", tmp_path / "cells"
    first = run_study(Squares(), stem, folder, workers=0, limit=2, progress=False)
    assert first.missing == 1 and [row["square"] for row in first.rows] == [1, 4]
    assert first.claims == {"the last is nine": None, "one": True}
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    second = run_study(Squares(), stem, folder, workers=0, progress=False)
    assert second.missing == 0 and second.rows[:2] == first.rows
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert {row["process"] for row in second.rows} == {os.getpid()}
    assert json.loads((tmp_path / "squares.json").read_text())["rows"] == second.rows
    page = (tmp_path / "squares.md").read_text()
    assert page == second.page and page.endswith("| one | yes |\n") and "| 9 |" in page
    assert (tmp_path / "squares.txt").read_text() == "3 cells"


def test_a_figure_that_fails_does_not_lose_the_table(tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(Squares, "draw", broken)
    with pytest.raises(RuntimeError, match="no fonts"):
        run_study(Squares(), tmp_path / "squares", tmp_path / "cells", workers=0, progress=False)
    assert "| 9 |" in (tmp_path / "squares.md").read_text(encoding="utf-8")
    assert len(json.loads((tmp_path / "squares.json").read_text())["rows"]) == 3


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_damaged_cell_is_named_and_kept(tmp_path, text):
    stem, folder = tmp_path / "squares", tmp_path / "cells"
    run_study(Squares(), stem, folder, workers=0, progress=False)
    (folder / "2.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=f"^cannot read {folder}/2.json .*run again"):
        run_study(Squares(), stem, folder, workers=0, progress=False)
    assert (folder / "2.json").read_bytes() == text.encode("latin-1")


def test_a_cell_that_fails_here_stops_the_others(tmp_path):
    cells = {tmp_path / f"{k}.json": k for k in (1, 0, 2)}
    with pytest.raises(RunError, match=r"0\.json: .*division by zero"):
        run_missing(invert, cells, name="cells", workers=0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["1.json"]


def test_cells_that_fail_speak_and_keep_the_others(tmp_path):
    cells = {tmp_path / f"{k}.json": k for k in range(3)}
    with pytest.raises(RunError, match=r"0\.json: .*division by zero"):
        run_missing(invert, cells, name="cells", workers=1, progress=False)
    assert (tmp_path / "1.json").exists() or (tmp_path / "2.json").exists()
    run_missing(invert, {p: k or 5 for p, k in cells.items()}, name="cells", progress=False)
    assert json.loads((tmp_path / "0.json").read_text()) == 1 / 5
    assert json.loads((tmp_path / "2.json").read_text()) == 1 / 2


def test_workers_end_with_the_process_that_began_them(tmp_path):
    script = tmp_path / "begin.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    worker = tmp_path / "worker"
    deadline = time.monotonic() + 120
    while not (worker.exists() and worker.read_text()):
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    beats = tmp_path / "beats"
    time.sleep(5)
    size = beats.stat().st_size
    assert size > 0
    time.sleep(3)
    assert beats.stat().st_size == size


PARENT = """
import os, sys, time
from pathlib import Path
from keodrift.studies import run_missing

def work(spec, path):
    (path.parent / "worker").write_text(str(os.getpid()))
    for _ in range(600):
        with open(path.parent / "beats", "a") as beats:
            beats.write(".")
        time.sleep(0.1)

if __name__ == "__main__":
    run_missing(work, {Path(sys.argv[1]) / "never": 0}, name="test", progress=False)
"""


def invert(spec: int, path: Path) -> None:
    write_json(path, 1 / spec)
