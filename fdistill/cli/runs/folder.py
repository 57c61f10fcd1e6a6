"""A run folder has one writer at a time, and a new run never takes the place of an older one."""

import errno
import os
import socket
import warnings
from pathlib import Path
from typing import BinaryIO

from fdistill.core.turns_done import turns_done

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_BY_NAME = ("last", "best", "hpc", "registry")  # what Lightning takes in place of a file
_NONE = " without a checkpoint"
_BUSY = (errno.EACCES, errno.EAGAIN)


class RunFolder:
    """The folder of one training run.

    The lock is a POSIX record lock on the file .lock, which holds the process's number and host for others to read. The
    system drops it when the process ends, however it ends; forked workers do not inherit it; over NFS it holds between
    hosts. The file goes with `release`; one that a kill left behind locks nothing. filelock, which torch brings, uses
    flock: workers inherit that, and one that outlives its run would keep the folder.
    """

    def __init__(self, path: str | Path) -> None:
        """Args:
        path: of the folder, which need not exist.
        """
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._made: list[Path] = []

    def enter(self, checkpoint: str | Path | None) -> str | None:
        """Take the folder for a run; returns a line that the user should read, or None.

        Args:
            checkpoint: what the run was asked to continue from, a file or "last"; None for a new run.

        Raises:
            ValueError: where another process trains here, or an older run would be overwritten.
            OSError: where the folder cannot be made.
        """
        self._lock()
        try:
            return self._check(checkpoint)
        except ValueError:
            self.release()
            raise

    def release(self) -> None:
        """Let others in, and leave no empty folder that was made for the lock."""
        if self._file is None:
            return
        (self.path / LOCK).unlink(missing_ok=True)  # before the lock goes: see _lock
        self._file.close()
        self._file = None
        for folder in self._made:
            if any(folder.iterdir()):
                break
            folder.rmdir()

    def found(self) -> str | None:
        """What an older run left here, in words; None where there is no run."""
        checkpoints = sorted(path.name for path in (self.path / "checkpoints").glob("*.ckpt"))
        metrics = self.path / "metrics.jsonl"
        if not checkpoints and not metrics.is_file() and not (self.path / "config.yaml").is_file():
            return None
        turns = turns_done(metrics)
        length = "a run" if turns is None else f"a run of {turns} turns"
        return f"{length} with {', '.join(checkpoints[:3])}" if checkpoints else length + _NONE

    def _check(self, checkpoint: str | Path | None) -> str | None:
        found = self.found()
        if found is None:
            return None
        has_checkpoint, other = not found.endswith(_NONE), "name another folder by --trainer.default_root_dir FOLDER"
        if checkpoint is None:
            raise ValueError(
                f"a new run needs a folder without one: {self.path} already holds {found}; --ckpt_path last "
                f"{'continues it' if has_checkpoint else 'starts it again'}, or {other}"
            )
        if str(checkpoint) in _BY_NAME:
            is_there = str(checkpoint) != "last" or any((self.path / "checkpoints").glob("last*.ckpt"))
            again = f"{self.path} holds {found}: without last.ckpt it starts again at turn 0, and metrics.jsonl with it"
            return None if is_there else again
        if not Path(checkpoint).resolve().is_relative_to(self.path.resolve()):
            raise ValueError(
                f"a run that goes on from {checkpoint} would overwrite another one: {self.path} already holds {found}; "
                f"--ckpt_path last continues that, or {other}"
            )
        if Path(checkpoint).name != "last.ckpt":
            return f"the run goes back to {checkpoint}: what it did after is dropped from metrics.jsonl and last.ckpt"
        return None

    def _lock(self) -> None:
        """Take the lock.

        Whoever lets go removes the file first, so one that was opened just before may be nobody's any more: it is
        opened again until the file that is locked is the one that has the name.
        """
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return
        while True:
            file = (self.path / LOCK).open("a+b")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _BUSY:
                    owner = _owner(file)
                    file.close()
                    raise ValueError(
                        f"one run at a time writes into a folder: {self.path} is in use by {owner}; wait for it, stop "
                        "it, or name another folder by --trainer.default_root_dir FOLDER"
                    ) from None
                file.close()
                warnings.warn(
                    f"{self.path} cannot be locked ({error.strerror}): two runs in it would not notice each other",
                    stacklevel=2,
                )
                (self.path / LOCK).unlink(missing_ok=True)
                return
            if _is_named(file, self.path / LOCK):
                break
            file.close()
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
        file.flush()
        self._file = file


def _is_named(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _owner(file: BinaryIO) -> str:
    file.seek(0)
    number, _, host = file.read(1000).decode(errors="replace").strip().partition(" ")
    where = "" if host == socket.gethostname() else f" on {host}"
    return f"process {number}{where}" if number.isdigit() else "another process"
