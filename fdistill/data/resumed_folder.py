"""A folder that a command fills file by file and continues after it was killed: each file tells what it belongs to."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from safetensors import SafetensorError, safe_open

from fdistill.core.weight_files import CheckpointError


class Description(Protocol):
    """The description that is written last.

    Attributes:
        request: fingerprint of all that decides what is in the folder's files.
    """

    @property
    def request(self) -> str: ...


D = TypeVar("D", bound=Description)


def held(target: Path, read: Callable[[Path], D], request: str, what: str) -> D:
    """The description of a folder that is whole and holds what is wanted already.

    Args:
        target: a folder with a description.
        read: the description of a folder whose files are whole; raises CheckpointError.
        request: fingerprint of what is wanted.
        what: its name in messages.

    Raises:
        ValueError: where the folder is broken or holds something else.
    """
    try:
        found = read(target)
    except CheckpointError as error:
        raise ValueError(f"{target} holds broken {what} ({error}): give --overwrite, or name another folder") from None
    if found.request != request:
        raise ValueError(f"{target} holds other {what}: name another folder, or give --overwrite")
    return found


def check_begun(target: Path, request: str, what: str) -> None:
    """Raises ValueError where a file of an interrupted command belongs to something else."""
    for path in target.glob("*.safetensors"):
        if _request_of(path) != request:
            raise ValueError(f"{path} is of other {what}: name another folder, or give --overwrite")


def _request_of(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt") as opened:
            return (opened.metadata() or {}).get("request")
    except (SafetensorError, OSError):
        return None
