"""Files: a reader never meets half of one, and what goes wrong names the file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keodrift.errors import OptionError, RunError

DRAFT = ".draft-"  # how names of files begin that are not whole yet


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Says which file the block could not write: a full disk, a folder that is read-only.

    Raises:
        RunError: The system refused.
    """
    try:
        yield
    except OSError as error:
        needs = "free or unlock its disk and folder, or choose another"
        raise RunError(
            f"cannot write {path} ({error.strerror or error}): {needs}; what was there is kept."
        ) from error


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Says which file of an earlier run the block could not read.

    Raises:
        RunError: The file is damaged, or holds something else, or the system refused.

    Example:
        >>> with reading("result.json"):
        ...     json.loads("{")
        Traceback (most recent call last):
        ...
        keodrift.errors.RunError: cannot read result.json (JSONDecodeError): ...
    """
    try:
        yield
    except Exception as error:  # what a damaged file makes of its reader has no end
        reason = getattr(error, "strerror", None) or type(error).__name__
        said = str(error).lower()
        if isinstance(error, ValueError) and ("pickle" in said or "python objects" in said):
            objects = "it holds Python objects, such as strings of dtype object"
            reason = objects if _of_numpy(path) else "it is no file of NumPy's"
        needs = "put back an intact one, or move it away and run again"
        raise RunError(f"cannot read {path} ({reason}): {needs}.") from error


def _of_numpy(path: str | Path) -> bool:
    """Whether a file begins as an .npy or .npz does; NumPy takes any other for a pickle."""
    with open(path, "rb") as file:
        return file.read(6).startswith((b"\x93NUMPY", b"PK"))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside the target, which takes its place when the block succeeds.

    Args:
        path: The file to write; its folder is made if needed.

    Raises:
        RunError: The system refused; what was there is kept.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_path(target) as draft:
        ...     _ = draft.write_text("done")
        >>> target.read_text()
        'done'
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept, since writers choose their format by it.
        handle, draft = tempfile.mkstemp(suffix=path.suffix, prefix=DRAFT, dir=path.parent)
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


@contextmanager
def claimed(folder: str | Path, argument: str) -> Iterator[None]:
    """Keeps other processes from writing to a run folder, which is made if needed.

    Args:
        folder: The folder; whoever has claimed it may claim it again.
        argument: What it was given as, for errors.

    Raises:
        OptionError: Another process has claimed it, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    path = Path(folder).resolve() / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0, is_singleton=True)
        lock.acquire()
    except Timeout as error:
        got = f"{folder}, where another process is training"
        raise OptionError(argument, got, "another folder, or patience") from error
    except OSError as error:
        raise OptionError(argument, folder, f"a folder to write to: {error.strerror}") from error
    try:
        for draft in path.parent.glob(f"{DRAFT}*"):  # of a process that was killed
            draft.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically.

    Args:
        path: The file to write.
        value: Anything that ``json`` takes.

    Raises:
        RunError: The system refused; what was there is kept.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.json"
        >>> write_json(target, {"w2_squared": 0.5})
        >>> json.loads(target.read_text())
        {'w2_squared': 0.5}
    """
    with atomic_path(path) as draft:
        draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        RunError: It is damaged or cannot be read.
    """
    with reading(path):
        return json.loads(Path(path).read_text(encoding="utf-8"))
