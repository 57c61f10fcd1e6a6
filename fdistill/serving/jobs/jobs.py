"""Training runs as jobs: submit, watch, stop and resume, whoever runs them."""

import codecs
import dataclasses
import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fdistill.core.atomic_files import atomic_write
from fdistill.core.turns_done import turns_done
from fdistill.serving.jobs.engines import Kubernetes, Ray, Slurm
from fdistill.serving.jobs.home import Home, Job, State
from fdistill.serving.jobs.local import Local

ENGINES: dict[str, Callable[[Home], Any]] = {"local": Local, "ray": Ray, "slurm": Slurm, "kubernetes": Kubernetes}
_LIVE = ("queued", "running", "stopping")
_POLL = 0.5  # s


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """A run for a table or JSON.

    Attributes:
        name: of the run.
        state: as of `State`.
        step: of the last line of its metrics.jsonl; None before the first.
        seconds: of its lives together.
        code: exit status of its last life.
        engine: who runs it.
        folder: run folder.
        max_steps: of its training; None where it has no end, or is not told.
    """

    name: str
    state: str
    step: int | None
    seconds: float
    code: int | None
    engine: str
    folder: str
    max_steps: int | None


class Jobs:
    """The runs of a home."""

    def __init__(self, home: str | Path = "runs") -> None:
        """Args:
        home: folder of the queue; it is made with the first run.
        """
        self.home = Home(home)
        self._engines: dict[str, Any] = {}

    def submit(self, job: Job, configuration: str | None = None) -> RunStatus:
        """Hand a run to its engine.

        Args:
            job: the run.
            configuration: kept in its file of the home, which its command reads.

        Raises:
            ValueError: where another run has its name or folder, or the engine is not there.
        """
        engine = self._engine(job.engine)
        with self._alone():
            self.check(job)
            Path(job.folder).mkdir(parents=True, exist_ok=True)
            if configuration is not None:
                atomic_write(self.home.file(job.name, "yaml"), configuration)
            self.home.write(job)
            self.home.write(dataclasses.replace(job, number=engine.submit(job)))
        return self.status(job.name)

    def check(self, job: Job) -> None:
        """Refuse a run that cannot be submitted, before anything of it is written.

        Raises:
            ValueError: as of `submit`.
        """
        self.home.file(job.name, "json")  # the name
        self._engine(job.engine)
        if job.engine != "local" and (job.accelerator not in ("cpu", "gpu", "cuda") or job.devices < 1):
            raise ValueError(
                f"--on {job.engine} asks for what the run needs: expected --trainer.accelerator gpu or cpu and a "
                f"number of --trainer.devices, got {job.accelerator} and {job.devices or 'auto'}"
            )
        if job.nodes > 1 and job.engine == "kubernetes":
            raise ValueError(
                f"--on kubernetes writes a job of one machine: expected --trainer.num_nodes 1, got {job.nodes}; "
                "several by --on ray or slurm"
            )
        for name in self.home.names():
            other = self.home.read(name)
            is_gone = not Path(other.folder).exists()
            if name == job.name and not (is_gone and self.status(name).state not in _LIVE):
                raise ValueError(f"a run has a name of its own: {name} is in {other.folder}; take another --name")
            if name != job.name and other.folder == job.folder and not is_gone:
                raise ValueError(f"a run has a folder of its own: {job.folder} is that of {name}; take another --name")

    def all(self) -> list[RunStatus]:
        """How all runs are; unknown where an engine does not answer."""
        found = []
        for name in self.home.names():
            try:
                found.append(self.status(name))
            except (ValueError, RuntimeError, OSError):
                job = self.home.read(name)
                found.append(RunStatus(name, "unknown", None, 0.0, None, job.engine, job.folder, job.max_steps))
        return found

    def status(self, name: str) -> RunStatus:
        """How a run is.

        Raises:
            ValueError: where there is no such run.
        """
        job = self.home.read(name)
        state: State = self._engine(job.engine).state(job)
        step = turns_done(Path(job.folder) / "metrics.jsonl")
        seconds = round(state.seconds, 1)
        return RunStatus(name, state.name, step, seconds, state.code, job.engine, job.folder, job.max_steps)

    def saved_step(self, name: str) -> int | None:
        """The step of its last checkpoint; None before the first."""
        file = self.home.read(name).checkpoint
        if not file.is_file():
            return None
        import torch  # seconds, which a table of runs does without

        return int(torch.load(file, map_location="cpu", mmap=True, weights_only=True)["global_step"])

    def stop(self, name: str, wait: bool = True) -> RunStatus:
        """End a run after it has saved.

        Args:
            name: of the run.
            wait: for its last process, however long that takes.

        Raises:
            ValueError: where it is not queued or running.
        """
        found = self.status(name)
        if found.state not in _LIVE:
            raise ValueError(f"{name} is {found.state} already (step {found.step}): there is nothing to stop")
        job = self.home.read(name)
        self._engine(job.engine).stop(job, wait)
        while wait and self.status(name).state in _LIVE:
            time.sleep(_POLL)
        return self.status(name)

    def resume(self, name: str) -> RunStatus:
        """Continue a run from its last checkpoint, by its engine.

        Raises:
            ValueError: where it still runs, or has reached its end.
        """
        job = self.home.read(name)
        with self._alone():
            found = self.status(name)
            if found.state in (*_LIVE, "done"):
                raise ValueError(
                    f"a run that stopped or failed can be resumed: {name} is {found.state}"
                    + ("; to go on, fdistill fit with a larger --trainer.max_steps" if found.state == "done" else "")
                )
            self.home.write(dataclasses.replace(job, number=self._engine(job.engine).resume(job)))
        return self.status(name)

    def follow(self, name: str, write: Callable[[str], object], until_end: bool) -> None:
        """Hand over what a run has printed.

        Args:
            name: of the run.
            write: gets pieces of text.
            until_end: go on as it prints more, until it has ended.
        """
        job, position = self.home.read(name), 0
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may have been printed by half
        while True:
            is_live = until_end and self.status(name).state in _LIVE
            if job.log.is_file():
                with job.log.open("rb") as file:
                    file.seek(position)
                    write(decoder.decode(file.read()))
                    position = file.tell()
            if not is_live:
                return
            time.sleep(_POLL)

    def has_worker(self) -> bool:
        """Whether somebody works on the queue of this machine, or nobody needs to."""
        is_open = any(run.engine == "local" and run.state in ("queued", "running") for run in self.all())
        return not is_open or bool(self._engine("local").has_worker())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time looks at what there is and adds to it."""
        self.home.records.mkdir(parents=True, exist_ok=True)
        with (self.home.records / ".submit.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _engine(self, name: str) -> Any:
        if name not in ENGINES:
            raise ValueError(f"a run is on one of {', '.join(ENGINES)}: got {name!r}")
        if name not in self._engines:
            self._engines[name] = ENGINES[name](self.home)
        return self._engines[name]
