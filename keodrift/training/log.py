"""The log of a run: rows in memory, as JSON lines, for TensorBoard and on a progress bar."""

from __future__ import annotations

import importlib.util
import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from tqdm.auto import tqdm

from keodrift.files import atomic_path, writing


@runtime_checkable
class Reporting(Protocol):
    """An objective that has numbers for the log beside its loss."""

    def report(self) -> dict[str, float]:
        """Those of its last call."""


class Log:
    """Takes the rows of a run while it is open.

    Args:
        history: The rows so far; new ones are appended.
        folder: Where ``metrics.jsonl`` and TensorBoard's events go; None writes nothing.
        start: Steps done.
        steps: Steps to do in all.
        progress: Show a progress bar on standard error.

    Example:
        >>> history = []
        >>> with Log(history, None, start=0, steps=1, progress=False) as log:
        ...     log.write({"step": 1, "loss": 0.5})
        >>> history
        [{'step': 1, 'loss': 0.5}]
    """

    def __init__(
        self,
        history: list[dict[str, float]],
        folder: Path | None,
        *,
        start: int,
        steps: int,
        progress: bool,
    ) -> None:
        self.history, self.folder = history, folder
        self.events: Any = None
        if folder is not None:
            # Rows later than the checkpoint are dropped: their steps are about to be redone.
            with atomic_path(folder / "metrics.jsonl") as draft:
                draft.write_text(
                    "".join(json.dumps(row) + "\n" for row in history), encoding="utf-8"
                )
            with writing(folder / "tensorboard"):
                self.events = _event_writer(folder, start)
        self.bar = tqdm(total=steps, initial=start, desc="train", unit="step", disable=not progress)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()
        if self.folder is not None and self.events is not None:
            # What ended the run is the error to be told.
            with suppress(OSError) if error else writing(self.folder / "tensorboard"):
                self.events.close()

    def write(self, row: dict[str, float]) -> None:
        """Keeps a row of the log and shows it.

        Raises:
            RunError: It cannot be written.
        """
        self.history.append(row)
        if self.folder is not None:
            path = self.folder / "metrics.jsonl"
            with writing(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            with writing(self.folder / "tensorboard"):
                for name in row.keys() - {"step"} if self.events else ():
                    self.events.add_scalar(name, row[name], row["step"])
        shown = {name: row[name] for name in row if name not in ("step", "seconds")}
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)


def _event_writer(folder: Path, step: int) -> Any:
    """TensorBoard's writer, or None where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    # What an interrupted run wrote after its checkpoint is about to be written again.
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
