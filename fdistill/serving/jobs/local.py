"""The queue of one machine: DBOS in a SQLite file. A worker takes runs from it; these calls only write and read it."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from typing import Any

from fdistill.serving.jobs.home import Home, Job, State, group_in, is_locked

QUEUE, WORKFLOW = "runs", "run"
_VERSION = "1"  # of what stands in the queue; DBOS gives a worker the runs of its own version
_OPEN = ("ENQUEUED", "DELAYED", "PENDING")
_POLL = 0.1  # s


class Local:
    """Runs on this machine, one per device."""

    def __init__(self, home: Home) -> None:
        """Open the queue, and make it where there is none. Its values are JSON: DBOS's own choice is pickle.

        Raises:
            ValueError: without the extra jobs.
        """
        try:
            from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer
            from sqlalchemy.exc import DatabaseError  # of dbos
        except ImportError as error:
            raise ValueError(f"the queue needs dbos: pip install 'fdistill[jobs]' ({error})") from error
        logging.getLogger("dbos").setLevel(logging.ERROR)
        home.records.mkdir(parents=True, exist_ok=True)
        self.home = home
        self._database: dict[str, Any] = {
            "system_database_url": f"sqlite:///{home.path / 'jobs.sqlite'}",
            "serializer": DBOSPortableJSONSerializer(),
        }
        try:
            DBOS.migrate(self._database["system_database_url"])
            self._client: Any = DBOSClient(**self._database)
        except DatabaseError as error:
            raise ValueError(
                f"the queue is a SQLite file that can be written: got {home.path / 'jobs.sqlite'} ({error.orig}); move "
                "it away, and submit what has not run yet again"
            ) from error

    def settings(self) -> Any:
        """What a worker opens DBOS with."""
        names = {"name": "fdistill", "application_version": _VERSION, "executor_id": "local", "log_level": "ERROR"}
        return names | self._database

    def submit(self, job: Job) -> str:
        """Queue a run, and see that somebody works on the queue."""
        self._client.delete_workflow(job.name)  # of a run whose folder is gone
        options = {"queue_name": QUEUE, "workflow_name": WORKFLOW, "workflow_id": job.name, "app_version": _VERSION}
        self._client.enqueue(options, job.name)
        self.start_worker()
        return job.name

    def state(self, job: Job) -> State:
        """How it is."""
        row, lock = self._row(job), self.home.lock(job.name)
        status = row.status if row else "ERROR"  # there is a record, and the queue was not reached
        is_alive = is_locked(lock) and group_in(lock) is not None
        noted = (row.attributes or {}) if row else {}
        if status in _OPEN:
            name = "running" if is_alive else "queued"
        elif status == "CANCELLED":
            name = "stopping" if is_alive else "stopped" if noted.get("stopped") else "failed"
        else:
            name = "done" if status == "SUCCESS" else "failed"
        began = noted.get("began") if is_alive else None
        seconds = noted.get("seconds", 0.0) + (time.time() - began if began else 0.0)
        return State(name, None if name in ("queued", "running", "stopping") else noted.get("code"), seconds)

    def stop(self, job: Job, wait: bool) -> None:
        """End a run: no life after this one, and SIGTERM to its processes, which save first.

        Args:
            job: queued or running.
            wait: until its last process has ended, however long its checkpoint takes.
        """
        self.note(job, stopped=True)
        self._client.cancel_workflow(job.name)
        lock, is_told = self.home.lock(job.name), False
        while is_locked(lock) and (wait or not is_told):
            group = group_in(lock)
            if group is not None and not is_told:  # None: it is about to start
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGTERM)
                is_told = True
            time.sleep(_POLL)

    def resume(self, job: Job) -> str:
        """Queue it again."""
        row = self._row(job)
        if row is None or row.status != "CANCELLED":
            return self.submit(job)
        self.note(job, stopped=False)
        self._client.resume_workflow(job.name, queue_name=QUEUE)
        self.start_worker()
        return job.name

    def start_worker(self) -> None:
        """Start a worker that outlives this process, where there is none."""
        if self.has_worker():
            return
        with (self.home.records / ".worker.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "fdistill", "jobs", "--work", "--home", str(self.home.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def has_worker(self) -> bool:
        """Whether somebody works on the queue."""
        return is_locked(self.home.worker_lock)

    def is_open(self) -> bool:
        """Whether some run waits or runs."""
        return bool(self._client.list_workflows(status=list(_OPEN), limit=1, load_input=False))

    def is_pending(self, job: Job) -> bool:
        """Whether a run is a worker's, neither stopped nor at its end."""
        row = self._row(job)
        return row is not None and row.status == "PENDING"

    def noted(self, job: Job) -> dict[str, Any]:
        """What was noted of a run: code, seconds, began, stopped."""
        row = self._row(job)
        return (row.attributes or {}) if row else {}

    def note(self, job: Job, **what: Any) -> None:
        """Add to it."""
        self._client.update_workflow_attributes(job.name, what, merge=True)

    def give_up(self, job: Job) -> None:
        """End a run as failed, so that it can be resumed: DBOS resumes what was cancelled, and no errors."""
        self._client.cancel_workflow(job.name)

    def _row(self, job: Job) -> Any:
        return next(iter(self._client.list_workflows(workflow_ids=[job.name], load_input=False)), None)
