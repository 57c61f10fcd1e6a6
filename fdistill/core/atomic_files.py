"""Files and folders that appear whole or not at all, whatever interrupts the writing."""

import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_FULL = re.compile("No space left on device|Disk quota exceeded")
_LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")  # what `_hidden_sibling` calls a file that is being written


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write `content` (text in UTF-8) to `path` and return it; a reader sees the old file or the new one, never half.

    Missing parent folders are made.

    Raises:
        OSError: in one line, when `path` cannot be written; nothing is left behind.
    """
    path = Path(path)
    with replace_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def write_json(path: str | Path, report: dict[str, Any]) -> Path:
    """Write a report to `path` as JSON in one piece and return the path.

    Raises:
        ValueError: when the report holds a NaN or an infinity, which JSON cannot carry.
        OSError: when `path` cannot be written.
    """
    try:
        text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"a report holds finite numbers: {error}; find the broken row before writing it") from error
    return atomic_write(path, text + "\n")


@contextmanager
def replace_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield an empty file that becomes `path` when the block ends, and vanishes when the block raises.

    Until then an existing `path` stays as it is. The content is on the disk before it takes the name, and the name
    before this returns, so that neither a kill nor a power cut leaves half a file. Missing parent folders are made.

    Raises:
        OSError: in one line, when `path` cannot be written; nothing is left behind.
    """
    path = Path(path)
    temporary = _hidden_sibling(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        if temporary.is_file():  # `replace` has taken it away when all went well
            temporary.unlink()


def remove_left_overs(folder: str | Path) -> list[Path]:
    """Remove the half-written files that a killed process left in a folder; returns their names.

    Nobody else may be writing into the folder: what it writes is taken for a left-over.
    """
    found = [path for path in Path(folder).glob(".*.tmp") if path.is_file() and _LEFT_OVER.fullmatch(path.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def of_other_writings(path: str | Path, ending: str, keep: str | None) -> list[Path]:
    """Files and folders beside a file, STEM.TOKEN.ENDING, that belong to an earlier writing of it.

    Args:
        path: of the file; STEM is its name without suffix, TOKEN are 12 hexadecimal digits.
        ending: a regular expression.
        keep: the token of the file that is there now; None where nothing of it is kept.
    """
    path = Path(path)
    names = re.compile(re.escape(path.stem) + rf"\.([0-9a-f]{{12}})\.{ending}")
    found = {beside: names.fullmatch(beside.name) for beside in path.parent.glob("*")}
    return [beside for beside, match in found.items() if match and match[1] != keep]


@contextmanager
def replace_folder(target: str | Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends, and vanishes when the block raises.

    An existing `target` stays in place until then, and is removed with all its content after the swap. A link is
    followed. Missing parent folders are made.

    Raises:
        NotADirectoryError: when `target` is a file.
        OSError: in one line, when the folder cannot be made or swapped in.
    """
    target = Path(target).resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"cannot replace {target}: expected a folder, got a file; name another place")
    temporary, old = _hidden_sibling(target, "tmp"), _hidden_sibling(target, "old")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise _explained(error, target) from error
    try:
        yield temporary
        _swap(temporary, target, old)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        told = isinstance(error, OSError) and error.errno is None  # in a line of ours
        if _FULL.search(str(error)) and not told:  # of safetensors it is an error of its own kind
            raise _explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), target) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replace_files(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder whose files take their places in `folder` when the block ends, and vanish when it raises.

    Missing folders are made.

    Raises:
        OSError: in one line, when the folder cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explained(error, folder) from error
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as made:
        yield Path(made)
        for path in sorted(Path(made).iterdir()):
            path.replace(folder / path.name)


def _swap(temporary: Path, target: Path, old: Path) -> None:
    """Move `target` to `old`, if there is one, and `temporary` to `target`; put `target` back on failure."""
    try:
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise _explained(error, target) from error


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hidden_sibling(path: Path, ending: str) -> Path:
    """Return an unused name beside `path`: a rename is atomic only inside one file system."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{ending}")


def _explained(error: OSError, path: Path) -> OSError:
    """Return an error of the same kind that says in one line what could not be written."""
    reason = error.strerror or str(error)
    return type(error)(f"cannot write {path}: {reason}; name a place that you may write to")
