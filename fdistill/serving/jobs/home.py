"""What is on disk of the jobs: one record per run, and locks that the system drops when a process ends."""

import dataclasses
import fcntl
import json
import os
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fdistill.core.atomic_files import atomic_write

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Job:
    """A run as it was submitted.

    Attributes:
        name: of the run, one per home.
        folder: run folder, absolute.
        cwd: folder in which the command runs.
        command: of the training, by arguments; it continues from its last checkpoint where there is one.
        accelerator: of the trainer: "auto" takes what is there.
        devices: on each machine; 0 for all.
        nodes: machines.
        engine: who runs it.
        number: what the engine calls it; empty before it was handed over.
        max_steps: of the training; None where it has no end, or an older record does not tell.
    """

    name: str
    folder: str
    cwd: str
    command: list[str]
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    engine: str = "local"
    number: str = ""
    max_steps: int | None = None

    @property
    def log(self) -> Path:
        """What the run prints, of all its lives."""
        return Path(self.folder) / "job.log"

    @property
    def checkpoint(self) -> Path:
        """What it continues from."""
        return Path(self.folder) / "checkpoints" / "last.ckpt"


class State(NamedTuple):
    """How a run is.

    Attributes:
        name: queued, running, stopping, stopped, failed, done; written where an engine only got a file; ended where it
            does not tell how.
        code: exit status of its last life.
        seconds: of its lives together.
    """

    name: str
    code: int | None = None
    seconds: float = 0.0


class Home:
    """The folder of the queue: jobs.sqlite, and .jobs with a record, a configuration and a lock of each run."""

    def __init__(self, path: str | Path) -> None:
        """Args:
        path: need not exist.
        """
        self.path = Path(path).absolute()
        self.records = self.path / ".jobs"

    def file(self, name: str, suffix: str) -> Path:
        """A file of a run.

        Raises:
            ValueError: for a name that is none.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"a run's name has at most 64 letters, digits, dots, dashes and underscores, the first a letter or "
                f"digit: got {name!r}"
            )
        return self.records / f"{name}.{suffix}"

    def lock(self, name: str) -> Path:
        """Held by the processes of a run; it holds the number of their group."""
        return self.file(name, "lock")

    @property
    def worker_lock(self) -> Path:
        """Held by whoever works on the queue."""
        return self.records / ".worker.lock"

    def device_lock(self, index: int) -> Path:
        """Held by the processes of the run on a device."""
        return self.records / f".device-{index}.lock"

    def names(self) -> list[str]:
        """All runs, in the order of their names."""
        return sorted(path.stem for path in self.records.glob("*.json"))

    def read(self, name: str) -> Job:
        """The record of a run.

        Raises:
            ValueError: where there is no such run.
        """
        try:
            return Job(**json.loads(self.file(name, "json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            shown = ", ".join(self.names()[:5]) or "none"
            raise ValueError(
                f"there is no run {name!r} in {self.path}: it has {shown}; fdistill jobs lists all"
            ) from None

    def write(self, job: Job) -> Job:
        """Keep the record of a run, and return it."""
        atomic_write(self.file(job.name, "json"), json.dumps(dataclasses.asdict(job), indent=2) + "\n")
        return job


def try_lock(path: Path) -> BinaryIO | None:
    """The file, locked for this process and those that inherit it, until all have closed it; None while others hold it.

    It is flock, which the processes of a run inherit: a lock is free when the last of them has ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_locked(path: Path) -> bool:
    """Whether some process holds it."""
    if not path.exists():
        return False
    file = try_lock(path)
    if file is not None:
        file.close()
    return file is None


def group_in(lock: Path) -> int | None:
    """The process group that a run wrote into its lock; None while it starts."""
    text = lock.read_text(encoding="ascii", errors="replace").strip() if lock.exists() else ""
    number = int(text) if text.isdigit() else 0
    return number if number > 1 and number != os.getpgrp() else None
