"""Experiments cell by cell: in processes of their own, and what is done is not done again."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import torch
from tqdm.auto import tqdm

from keodrift.errors import RunError

Spec = TypeVar("Spec")


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
        workers: Processes at once, which share the cores; one a core by default.
        limit: Does at most this many cells now.
        progress: Show cells done and time left on standard error.

    Raises:
        RunError: A cell failed; the others that had begun are finished and kept.
    """
    missing = {path: spec for path, spec in cells.items() if not path.exists()}
    cores = os.cpu_count() or 1
    workers = min(workers or cores, max(1, len(missing)))
    # Fresh processes, because KeOps must not be forked once it has been imported.
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(max(1, cores // workers),),
    )
    bar = tqdm(total=len(cells), initial=len(cells) - len(missing), desc=name, disable=not progress)
    with bar, pool:
        chosen = list(missing.items())[:limit]
        jobs = {pool.submit(work, spec, path): path for path, spec in chosen}
        try:
            for job in as_completed(jobs):
                try:
                    job.result()
                except Exception as error:
                    raise RunError(f"{jobs[job]}: {error}") from error
                bar.update()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin(threads: int) -> None:
    """Sets a worker up: its share of the cores, and an end if the process that began it dies."""
    torch.set_num_threads(threads)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # or it would go on writing where the next command begins

    threading.Thread(target=watch, daemon=True).start()
