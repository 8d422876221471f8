"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside the target, which takes its place when the block succeeds.

    Args:
        path: The file to write; its folder is made if needed.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_path(target) as draft:
        ...     _ = draft.write_text("done")
        >>> target.read_text()
        'done'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, since writers choose their format by it.
    handle, draft = tempfile.mkstemp(suffix=path.suffix, prefix=".draft-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(draft)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(draft, 0o666 & ~mask)  # mkstemp makes files private
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically.

    Args:
        path: The file to write.
        value: Anything that ``json`` takes.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.json"
        >>> write_json(target, {"w2_squared": 0.5})
        >>> json.loads(target.read_text())
        {'w2_squared': 0.5}
    """
    with atomic_path(path) as draft:
        draft.write_text(json.dumps(value, indent=2) + "\n")
