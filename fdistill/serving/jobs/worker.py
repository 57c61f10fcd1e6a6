"""Who works on the queue: takes a device for each run, starts it, and starts it again when something killed it."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from fdistill.serving.jobs.home import Home, Job, try_lock
from fdistill.serving.jobs.local import QUEUE, WORKFLOW, Local

RESUMABLE = (128 + signal.SIGTERM, 128 + signal.SIGUSR1, 128 + signal.SIGUSR2)
"""With which `fdistill fit` ends after it has saved."""
_FUTILE = 3  # lives in a row that saved nothing, after which a run that is killed each time counts as failed
_POLL = 0.2  # s
_NEXT = 1.0  # s between two looks at the queue
_START = 5.0  # s in which another worker may let go of the lock, or a caller that only looked at it


class Worker:
    """Works on the queue of a home until it is empty.

    A run is a process group of its own and outlives a worker that is killed. Its lock and those of its devices are
    inherited by its processes, so that the next worker waits until the last of them has ended, and then continues it
    from its checkpoint; one that had reached its end has nothing left to do. (DBOS starts the runs of a killed worker
    again beside its queue's limit: only the locks keep one run to a device.)
    """

    def __init__(self, home: Home, devices: Sequence[str] | None = None) -> None:
        """Args:
        home: of the queue.
        devices: for CUDA_VISIBLE_DEVICES, one of each; an empty name sets nothing. Those of this machine if None.
        """
        self.home = home
        self.devices = visible_devices() if devices is None else list(devices)
        self._queue = Local(home)
        self._first = threading.Lock()  # whoever waits for devices; the others wait behind it
        self._groups: set[int] = set()
        self._leaving = False

    def work(self) -> None:
        """Run what is queued, and return when nothing is. SIGTERM stops the runs, which the next worker continues.

        Raises:
            ValueError: where another worker is at it.
        """
        from dbos import DBOS

        lock: BinaryIO | None = self._worker_lock()
        before = signal.signal(signal.SIGTERM, self._leave)

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)
        def run(name: str) -> None:
            self._run(self.home.read(name))

        DBOS(config=self._queue.settings())
        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=len(self.devices), polling_interval_sec=_NEXT)
        while lock is not None and not self._leaving:
            time.sleep(_POLL)
            if not self._queue.is_open():
                lock.close()  # whoever queues a run from here on starts a worker, and what came before is seen below
                lock = try_lock(self.home.worker_lock) if self._queue.is_open() else None
        while self._groups:
            time.sleep(_POLL)
        DBOS.destroy(destroy_registry=True)
        signal.signal(signal.SIGTERM, before)

    def _run(self, job: Job) -> None:
        """All lives of a run, up to its end."""
        seconds, futile = self._queue.noted(job).get("seconds", 0.0), 0
        while futile < _FUTILE and self._queue.is_pending(job):
            saved, began = _saved(job), time.time()
            code = self._life(job)
            if code is not None:
                seconds += time.time() - began
                self._queue.note(job, code=code, seconds=round(seconds, 1), began=None)
            if self._leaving:
                raise SystemExit  # which DBOS does not record: the run stays open, and the next worker continues it
            if code == 0 and self._queue.is_pending(job):
                return
            if code is not None and code > 0 and code not in RESUMABLE:
                break
            futile = 0 if _saved(job) != saved else futile + 1
        if self._queue.is_pending(job):
            self._queue.give_up(job)
        raise SystemExit  # its end is recorded already

    def _life(self, job: Job) -> int | None:
        """From start to end of the run's processes; returns the exit status, None where it was stopped before."""
        with contextlib.ExitStack() as held:
            lock = self._wait_for(job, lambda: self._lock(job))
            turn = self._wait_for(job, lambda: [True] * self._first.acquire(timeout=_POLL)) if lock else []
            try:
                devices = self._wait_for(job, lambda: self._free_devices(job)) if turn else []
            finally:
                if turn:
                    self._first.release()
            for file in (*lock, *(file for _, file in devices)):
                held.enter_context(file)
            if not devices or not self._queue.is_pending(job):
                return None
            files = [file.fileno() for file in (*lock, *(file for _, file in devices))]
            process = self._start(job, ",".join(self.devices[index] for index, _ in devices), files)
            self._groups.add(process.pid)
            if self._leaving:  # told so while this one started
                self._leave()
        self._queue.note(job, began=time.time())
        code = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what a killed run left behind, loaders of data for one
        self._groups.discard(process.pid)
        return code

    def _start(self, job: Job, devices: str, files: list[int]) -> "subprocess.Popen[bytes]":
        """The run's processes; a shell writes the number of their group into the lock, and becomes the run."""
        with job.log.open("ab") as log:
            return subprocess.Popen(
                ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self.home.lock(job.name)), *job.command],
                cwd=job.cwd,
                env=os.environ | ({"CUDA_VISIBLE_DEVICES": devices} if devices else {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=files,
            )

    def _wait_for(self, job: Job, take: Callable[[], list[Any]]) -> list[Any]:
        """What `take` returns when it is something; nothing where the run is stopped or the worker leaves before."""
        while not self._leaving and self._queue.is_pending(job):
            if taken := take():
                return taken
            time.sleep(_POLL)
        return []

    def _lock(self, job: Job) -> list[BinaryIO]:
        """The lock of a run, with no group in it yet; nothing while processes of an earlier life hold it."""
        file = try_lock(self.home.lock(job.name))
        if file is None:
            return []
        file.truncate(0)
        return [file]

    def _free_devices(self, job: Job) -> list[tuple[int, BinaryIO]]:
        """As many devices as the run asks for, locked, or none."""
        wanted = min(job.devices or len(self.devices), len(self.devices))
        found: list[tuple[int, BinaryIO]] = []
        for index in range(len(self.devices)):
            file = try_lock(self.home.device_lock(index)) if len(found) < wanted else None
            found += [(index, file)] if file is not None else []
        if len(found) == wanted:
            return found
        for _, file in found:
            file.close()
        return []

    def _worker_lock(self) -> BinaryIO:
        end = time.monotonic() + _START
        while (lock := try_lock(self.home.worker_lock)) is None:
            if time.monotonic() > end:
                raise ValueError(f"one worker at a time works on a queue: another one works on {self.home.path}")
            time.sleep(_POLL)
        return lock

    def _leave(self, *_: object) -> None:
        self._leaving = True
        for group in list(self._groups):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)


def visible_devices() -> list[str]:
    """The GPUs of this machine for CUDA_VISIBLE_DEVICES, and one without a name where there is none."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None and shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        given = ",".join(subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split())
    return [name for name in (given or "").split(",") if name] or [""]


def _saved(job: Job) -> int | None:
    """When the last checkpoint was written."""
    return job.checkpoint.stat().st_mtime_ns if job.checkpoint.is_file() else None
