"""The papers' figures, one command each: ``keodrift reproduce fig2``.

`generators` holds the grids of trained 2D generators (Figs. 2, 6, 7, 8), `flows` those of particle
flows (Figs. 1, 5). Both run cell by cell: what is done is not done again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from keodrift.errors import OptionError
from keodrift.files import atomic_path, write_json
from keodrift.reproduce import flows, generators

FIGURES: dict[str, Any] = {**flows.FIGURES, **generators.FIGURES}


def reproduce(
    name: str,
    folder: str | Path,
    *,
    quick: bool = False,
    experiment: str | None = None,
    workers: int | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs what is missing of a figure, then draws it and judges the paper's claims.

    Args:
        name: A key of `FIGURES`.
        folder: Where cells, figure and table go; run again, it goes on there.
        quick: Minutes instead of hours: shows that everything runs, not what comes out.
        experiment: Setting of trained generators, ``"public_run"`` (default) or ``"paper_text"``.
        workers: Cells at once; one a core by default.
        limit: Runs at most this many cells now.
        progress: Show cells done and time left on standard error.

    Returns:
        The table: one row a line or panel of the figure, the claims, and how many cells are
        missing.

    Raises:
        OptionError: The figure or the experiment is unknown, or ``workers`` or ``limit`` is not
            positive.
        RuntimeError: A cell failed; its last words are in the message, the others are kept.
    """
    if name not in FIGURES:
        raise OptionError("figure", repr(name), f"one of {sorted(FIGURES)}")
    for option, value in (("workers", workers), ("limit", limit)):
        if value is not None and value < 1:
            raise OptionError(option, value, "a positive integer")
    grid = FIGURES[name]
    trained = isinstance(grid, generators.Grid)
    if experiment is not None:
        known = generators.EXPERIMENTS if trained else ()
        if experiment not in known:
            raise OptionError("experiment", repr(experiment), f"one of {known} for {name}")
        grid = replace(grid, experiment=experiment)
    # Runs of different settings, or short ones, must not pass for each other.
    cells = Path(folder) / ("quick" if quick else grid.experiment if trained else "runs")
    grid = grid.quick() if quick else grid
    kind = generators if trained else flows
    report = kind.reproduce(
        name, grid, Path(folder), cells, workers=workers, limit=limit, progress=progress
    )
    write_json(Path(folder) / "table.json", report)
    with atomic_path(Path(folder) / "table.md") as draft:
        draft.write_text(markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """The table and the claims of a report as Markdown."""
    kind = flows if "step" in report else generators
    lines = [kind.markdown(report)]
    if report["claims"]:
        words = {True: "yes", False: "no", None: "not measured"}
        lines += ["", "| claim | seen |", "|---|---|"]
        lines += [f"| {claim} | {words[value]} |" for claim, value in report["claims"].items()]
    return "\n".join(lines) + "\n"
