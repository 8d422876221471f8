"""The papers' figures, one command each: ``keodrift reproduce fig2``.

`generators` holds the grids of trained 2D generators (Figs. 2, 6, 7, 8), `flows` those of particle
flows (Figs. 1, 5). Both run cell by cell: what is done is not done again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from keodrift.checks import check_choice, check_positive
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
        folder: Where cells, figure and table go, named by figure and setting; run again, it goes
            on there.
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
        RunError: A cell failed; its last words are in the message, the others are kept.
    """
    check_choice("figure", name, tuple(FIGURES))
    for option, count in (("workers", workers), ("limit", limit)):
        if count is not None:
            check_positive(option, count, integer=True)
    if not isinstance(quick, bool):
        raise OptionError("quick", repr(quick), "true or false")
    grid = FIGURES[name]
    trained = isinstance(grid, generators.Grid)
    if experiment is not None:
        if not trained:
            raise OptionError("experiment", repr(experiment), f"none: {name} trains no generator")
        check_choice("experiment", experiment, generators.EXPERIMENTS)
        grid = replace(grid, experiment=experiment)
    # Every setting has its own runs, figure and table, so that none passes for another's.
    words = (grid.experiment if trained else "", "quick" if quick else "")
    setting = "_".join(filter(None, words))
    stem = Path(folder) / "_".join(filter(None, (name, setting)))
    cells = Path(folder) / (setting or "runs")
    grid = grid.quick() if quick else grid
    kind = generators if trained else flows
    report = kind.reproduce(stem, grid, cells, workers=workers, limit=limit, progress=progress)
    write_json(stem.with_suffix(".json"), report)
    with atomic_path(stem.with_suffix(".md")) as draft:
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
