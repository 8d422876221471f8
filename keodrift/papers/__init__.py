"""The papers' figures, one command each: ``keodrift reproduce fig2``.

`networks2d` holds the grids of trained 2D networks (Figs. 2, 6, 7, 8), `flows` those of particle
flows (Figs. 1, 5), `gradient_flows` six flows on five targets, `mnist` the tables of
class-conditional digits. Run again, each goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from keodrift.checks import check_choice, check_positive
from keodrift.errors import OptionError
from keodrift.papers import flows, gradient_flows, mnist, networks2d
from keodrift.studies import Report, run_study

Grid = flows.FlowGrid | networks2d.NetworkGrid | gradient_flows.GradientFlowGrid | mnist.MnistGrid
FIGURES: dict[str, Grid] = {
    **flows.FIGURES,
    **networks2d.FIGURES,
    "flows": gradient_flows.GradientFlowGrid(),
    "mnist": mnist.MnistGrid(),
}


def reproduce(
    name: str,
    folder: str | Path,
    *,
    quick: bool = False,
    experiment: str | None = None,
    fields: Sequence[str] | None = None,
    data: str | None = None,
    workers: int | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> Report:
    """Runs what is missing of a figure, then draws it and judges the paper's claims.

    Args:
        name: A key of `FIGURES`.
        folder: Where cells, figure and table go, named by figure and setting; run again, it goes
            on there.
        quick: Minutes instead of hours: shows that everything runs, not what comes out.
        experiment: Setting of trained networks, ``"public_run"`` (default) or ``"paper_text"``.
        fields: Of trained networks, the lines to run and draw, as folders of cells name them, such
            as ``["Sinkhorn_20", "recommended"]``; all by default. Cells count for the whole figure
            too.
        data: Where MNIST is, for its table; see `keodrift.data.load_mnist`. It is downloaded by
            default, and ``"digits"`` are scikit-learn's 8×8 ones.
        workers: Cells at once; one a core by default, and 0 for one after the other in this
            process.
        limit: Runs at most this many cells now; 0 draws what is there.
        progress: Show cells done and time left on standard error.

    Returns:
        The report: one row a line or panel of the figure, the claims, and how many cells are
        missing.

    Raises:
        OptionError: The figure or the experiment is unknown, or ``workers`` or ``limit`` is no
            such number.
        RunError: A cell failed; its last words are in the message, the others are kept.
    """
    check_choice("figure", name, tuple(FIGURES))
    for option, count in (("workers", workers or None), ("limit", limit or None)):
        if count is not None:
            check_positive(option, count, integer=True)
    if not isinstance(quick, bool):
        raise OptionError("quick", repr(quick), "true or false")
    grid, setting = FIGURES[name], ""
    if isinstance(grid, networks2d.NetworkGrid):
        if experiment is not None:
            check_choice("experiment", experiment, networks2d.EXPERIMENTS)
            grid = replace(grid, experiment=experiment)
        setting = grid.experiment
        if fields is not None:
            grid = grid.only(fields)
            fields = [word for word, _ in grid.fields.values()]  # in one order, each once
    elif experiment is not None:
        raise OptionError("experiment", repr(experiment), f"none: {name} has one setting")
    elif fields is not None:
        raise OptionError("fields", repr(fields), f"none: {name} is drawn as a whole")
    if isinstance(grid, mnist.MnistGrid):
        if quick and data not in (None, "digits"):
            raise OptionError("data", repr(data), "none with quick, which takes the 8×8 digits")
        grid = replace(grid, data=data)
        setting = "digits" if data == "digits" and not quick else ""
    elif data is not None:
        raise OptionError("data", repr(data), f"none: {name} draws its own")
    # Every setting has its own runs, figure and table, so that none passes for another's; lines
    # share the runs.
    setting = "_".join(filter(None, (setting, "quick" if quick else "")))
    stem = Path(folder) / "_".join(filter(None, (name, setting, *(fields or ()))))
    return run_study(
        grid.quick() if quick else grid,
        stem,
        Path(folder) / (setting or "runs"),
        workers=workers,
        limit=limit,
        progress=progress,
    )
