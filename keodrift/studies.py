"""A study: a grid of specs, one file a cell, from which come rows, table, figure and claims.

Cells run in processes of their own, and what is done is not done again.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from tqdm.auto import tqdm

from keodrift.errors import RunError
from keodrift.files import atomic_path, read_json, write_json

Spec = TypeVar("Spec")
Row = dict[str, Any]
Claims = dict[str, bool | None]


class Study(ABC, Generic[Spec]):
    """What a study says about itself; `run_study` does the rest.

    Attributes:
        title: What the study shows.
    """

    title: str

    @abstractmethod
    def cells(self) -> Mapping[str, Spec]:
        """File of every cell, inside their folder, and what it is made from."""

    @staticmethod
    @abstractmethod
    def work(spec: Spec, path: Path) -> None:
        """Does one cell and writes its file atomically; worker processes import it by name."""

    @abstractmethod
    def table(self, rows: list[Row]) -> str:
        """The rows as Markdown."""

    @abstractmethod
    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        """The figures, as files whose names begin with ``stem``; cells lie in ``folder``."""

    def rows(self, folder: Path) -> list[Row]:
        """What the table has a line for; by default the finished cells, which are JSON files."""
        return [read_json(path) for _, path in self.finished(folder)]

    def claims(self, rows: list[Row]) -> Claims:
        """What should be seen, and whether it was; None where a cell is missing."""
        return {}

    def finished(self, folder: Path) -> Iterator[tuple[Spec, Path]]:
        """The cells whose files are there."""
        for name, spec in self.cells().items():
            if (folder / name).exists():
                yield spec, folder / name


@dataclass(frozen=True)
class Report:
    """What a study found.

    Attributes:
        title: What it shows.
        missing: Number of cells that have not been run.
        rows: Lines of the table.
        claims: What should be seen, and whether it was; None if that is not known yet.
        page: Table and claims as Markdown.
    """

    title: str
    missing: int
    rows: list[Row]
    claims: Claims
    page: str


def run_study(
    study: Study[Any],
    stem: Path,
    folder: Path,
    *,
    workers: int | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> Report:
    """Runs what is missing of a study, then draws it and judges its claims.

    Args:
        study: The study.
        stem: Numbers are written to ``STEM.json``, table and claims to ``STEM.md``, figures beside
            them.
        folder: Where the cells are.
        workers: As in `run_missing`.
        limit: As in `run_missing`.
        progress: As in `run_missing`.

    Raises:
        RunError: A cell failed; what else was finished is kept.
    """
    cells = {folder / name: spec for name, spec in study.cells().items()}
    run_missing(study.work, cells, name=stem.name, workers=workers, limit=limit, progress=progress)
    rows = study.rows(folder)
    claims = study.claims(rows)
    page = study.table(rows)
    if claims:
        words = {True: "yes", False: "no", None: "not measured"}
        verdicts = [(claim, words[seen]) for claim, seen in claims.items()]
        page += "\n\n" + markdown_table("claim|seen", verdicts)
    missing = sum(not path.exists() for path in cells)
    report = Report(study.title, missing, rows, claims, page + "\n")
    with atomic_path(stem.with_suffix(".md")) as draft:
        draft.write_text(report.page, encoding="utf-8")
    numbers = {"title": study.title, "missing": missing, "rows": rows, "claims": claims}
    write_json(stem.with_suffix(".json"), numbers)
    study.draw(rows, folder, stem)  # last: what is known must not wait for a picture
    return report


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Rows that agree in some keys, by their values there, in the order in which they come.

    Example:
        >>> grouped([{"tau": 0.1, "seed": 0}, {"tau": 0.1, "seed": 1}], "tau")
        {(0.1,): [{'tau': 0.1, 'seed': 0}, {'tau': 0.1, 'seed': 1}]}
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def markdown_table(header: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table.

    Args:
        header: Titles between bars; a column whose title ends with a colon is right-aligned.
        rows: One entry a column.

    Example:
        >>> print(markdown_table("field|W₂²:", [("one-sided", 0.63)]))
        | field | W₂² |
        |---|---:|
        | one-sided | 0.63 |
    """
    titles = header.split("|")
    rule = "".join("|---:" if title.endswith(":") else "|---" for title in titles)
    lines = [[title.removesuffix(":") for title in titles], *rows]
    top, *rest = (f"| {' | '.join(map(str, line))} |" for line in lines)
    return "\n".join([top, f"{rule}|", *rest])


def run_missing(
    work: Callable[[Spec, Path], None],
    cells: Mapping[Path, Spec],
    *,
    name: str,
    workers: int | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> None:
    """Calls ``work(spec, path)`` for every path that does not exist yet.

    Args:
        work: Does one cell and writes its path atomically; a function of a module, not a closure.
        cells: What each result file is made from.
        name: Of the progress bar.
        workers: Processes at once, which share the cores; one a core by default. With 0, cells are
            done one after the other in this process.
        limit: Does at most this many cells now.
        progress: Show cells done and time left on standard error.

    Raises:
        RunError: A cell failed; the others that had begun are finished and kept.
    """
    missing = [(path, spec) for path, spec in cells.items() if not path.exists()]
    bar = tqdm(total=len(cells), initial=len(cells) - len(missing), desc=name, disable=not progress)
    # Closed at once on an error, so that nothing is still writing when it is raised.
    with bar, closing(_begin(work, missing[:limit], workers)) as begun:
        for path, end in begun:
            try:
                end()
            except Exception as error:
                raise RunError(f"{path}: {error}") from error
            bar.update()


def _begin(
    work: Callable[[Spec, Path], None], cells: list[tuple[Path, Spec]], workers: int | None
) -> Generator[tuple[Path, Callable[[], None]], None, None]:
    """Paths of cells, each with a call that ends it or raises what it raised."""
    if workers == 0:
        yield from ((path, partial(work, spec, path)) for path, spec in cells)
        return
    cores = os.cpu_count() or 1
    workers = min(workers or cores, max(1, len(cells)))
    # Fresh processes, because KeOps must not be forked once it has been imported.
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=set_up,
        initargs=(max(1, cores // workers),),
    )
    try:
        jobs = {pool.submit(work, spec, path): path for path, spec in cells}
        for job in as_completed(jobs):
            yield jobs[job], job.result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def set_up(threads: int) -> None:
    """Sets a worker up: its share of the cores, and an end if the process that began it dies."""
    torch.set_num_threads(threads)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # or it would go on writing where the next command begins

    threading.Thread(target=watch, daemon=True).start()
