"""`fdistill submit`, `jobs`, `stop`, `resume`, `logs`: training runs as jobs."""

import contextlib
import io
import itertools
import os
import sys
from pathlib import Path
from typing import Any

from fdistill.cli.commands import UsageError
from fdistill.cli.runs import RunFolder
from fdistill.core.yaml_files import parse_yaml
from fdistill.serving.jobs import Job, Jobs, RunStatus

_FOLDER = "trainer.default_root_dir"


def submit(settings: list[str], name: str | None = None, on: str = "local", home: str = "runs") -> None:
    """Queue a run: fdistill submit CONFIG... [--name NAME] [options of fit].

    The configurations are merged here and kept: what is changed in them later does not change the run. It runs in the
    working directory, and continues from its last checkpoint when something has killed it.

    Args:
        settings: configurations, then options of fit.
        name: of the run; its folder is HOME/NAME then. That of the folder in the configuration, if not given.
        on: local (one run per device of this machine, started by this command), ray, slurm or kubernetes.
        home: folder of the queue.
    """
    configs = list(itertools.takewhile(lambda argument: not argument.startswith("-"), settings))
    if not configs and "--config" not in settings:
        raise UsageError("fdistill submit takes configurations: name one or several, as fdistill fit --config does")
    options = settings[len(configs) :]
    if name is not None and not any(option.partition("=")[0] == f"--{_FOLDER}" for option in options):
        options = [*options, f"--{_FOLDER}", str(Path(home, name))]
    merged = _merged([*(part for config in configs for part in ("--config", config)), *options])
    content = parse_yaml(merged)
    trainer = content["trainer"]
    if content["ckpt_path"] not in (None, "last"):
        raise UsageError(
            f"a job continues from its own last checkpoint: got --ckpt_path {content['ckpt_path']}; branch by "
            "fdistill fit"
        )
    if not trainer["default_root_dir"]:
        raise UsageError("a run needs a folder: give --name NAME, or trainer.default_root_dir in the configuration")
    folder = Path(trainer["default_root_dir"]).absolute()
    jobs, name = Jobs(home), name or folder.name
    file = jobs.home.file(name, "yaml")
    devices = trainer["devices"]
    job = Job(
        name,
        str(folder),
        os.getcwd(),
        [sys.executable, "-m", "fdistill", "fit", "--config", str(file), "--ckpt_path", "last"],
        trainer["accelerator"],
        max(devices, 0) if isinstance(devices, int) else len(devices) if isinstance(devices, list) else 0,
        trainer["num_nodes"],
        on,
        max_steps=trainer["max_steps"] if trainer["max_steps"] > 0 else None,
    )
    jobs.check(job)
    place = RunFolder(folder)
    place.enter(None)  # refuses a folder that holds a run, or in which one trains
    place.release()
    _tell(jobs.submit(job, merged))


def jobs(home: str = "runs", work: bool = False) -> None:
    """List the runs, or work on them.

    Args:
        home: folder of the queue.
        work: run what is queued on this machine, and return when nothing is; fdistill submit starts this by itself.
    """
    if work:
        from fdistill.serving.jobs.worker import Worker

        Worker(Jobs(home).home).work()
        return
    found = Jobs(home)
    runs = found.all()
    if not runs:
        print(f"no runs in {home}: fdistill submit CONFIG... queues one")
        return
    rows = [("run", "state", "step", "seconds", "exit", "on", "folder"), *map(_row, runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]]))
    if not found.has_worker():
        print(f"nobody works on the queue: fdistill jobs --work --home {home} does, and so does the next submit")


def stop(run: str, home: str = "runs") -> None:
    """End a run: SIGTERM to its processes, which save first; returns when they have ended.

    Args:
        run: its name.
        home: folder of the queue.
    """
    found = Jobs(home)
    _tell(found.stop(run), found.saved_step(run))


def resume(run: str, home: str = "runs") -> None:
    """Continue a run that stopped or failed, from its last checkpoint.

    Args:
        run: its name.
        home: folder of the queue.
    """
    _tell(Jobs(home).resume(run))


def logs(run: str, home: str = "runs", follow: bool = False) -> None:
    """Print what a run has printed, in all its lives.

    Args:
        run: its name.
        home: folder of the queue.
        follow: go on until it has ended.
    """
    Jobs(home).follow(run, lambda text: print(text, end="", flush=True), follow)


def _merged(arguments: list[str]) -> str:
    """The configuration that fit would run, with full class names, as YAML."""
    from fdistill.cli.fit import run_trainer

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        run_trainer(["fit", *arguments, "--print_config"])
    return text.getvalue()


def _row(run: RunStatus) -> tuple[str, ...]:
    cells: list[Any] = [run.name, run.state, run.step, f"{run.seconds:.0f}", run.code, run.engine]
    return (*("-" if cell is None else str(cell) for cell in cells), os.path.relpath(run.folder))


def _tell(run: RunStatus, saved: int | None = None) -> None:
    step = "" if saved is None else f", saved step {saved}"
    print(f"{run.name}: {run.state}{step}; {os.path.relpath(run.folder)}")
