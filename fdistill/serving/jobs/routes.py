"""The runs over HTTP, for the service's application, which asks for its token before it comes here."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Body, HTTPException

from fdistill.serving.jobs.jobs import Jobs

_FIELDS = {"configs", "name", "settings"}
_SETTING = re.compile(r"(trainer|model|data)(\.[a-z]\w*)+|seed_everything")


def router(home: str | Path, configs: str | Path) -> APIRouter:
    """GET and POST /v1/runs, GET /v1/runs/NAME, POST /v1/runs/NAME/stop and /resume.

    A configuration names classes, which are code: only files of one folder are taken, and settings beside them are
    numbers. Errors have one line as their detail: 400 for a request that is wrong, 404 for a run that is not there.

    Args:
        home: folder of the queue.
        configs: folder of the configurations that may be run.
    """
    jobs, folder, routes = Jobs(home), Path(configs).resolve(), APIRouter(prefix="/v1/runs")

    @routes.get("")
    def listed() -> dict[str, Any]:
        return {"object": "list", "data": [dataclasses.asdict(run) for run in jobs.all()]}

    @routes.post("", status_code=202)
    def submit(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008  # how FastAPI is told
        with _refusals():
            _submit(body, folder, jobs)
            return dataclasses.asdict(jobs.status(body["name"]))

    @routes.get("/{name}")
    def one(name: str) -> dict[str, Any]:
        with _refusals(404):
            return dataclasses.asdict(jobs.status(name)) | {"saved_step": jobs.saved_step(name)}

    @routes.post("/{name}/stop", status_code=202)
    def stop(name: str) -> dict[str, Any]:
        with _refusals(404):
            jobs.status(name)
        with _refusals():
            return dataclasses.asdict(jobs.stop(name, wait=False))

    @routes.post("/{name}/resume", status_code=202)
    def resume(name: str) -> dict[str, Any]:
        with _refusals(404):
            jobs.status(name)
        with _refusals():
            return dataclasses.asdict(jobs.resume(name))

    return routes


def _submit(body: dict[str, Any], folder: Path, jobs: Jobs) -> None:
    """Run `fdistill submit` in a process of its own: configurations are merged by code that belongs to a command."""
    if unknown := body.keys() - _FIELDS:
        raise ValueError(f"a run has {', '.join(sorted(_FIELDS))}: got {', '.join(sorted(unknown))} as well")
    names, name, settings = body.get("configs"), body.get("name"), body.get("settings", {})
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise ValueError(f"configs is a list of names of configurations: got {names!r}")
    if not isinstance(name, str):
        raise ValueError(f"name is a run's name: got {name!r}")
    if not isinstance(settings, dict) or not all(isinstance(value, int | float) for value in settings.values()):
        raise ValueError(f"settings are numbers or true and false by their full names: got {settings!r}")
    if wrong := [key for key in settings if not _SETTING.fullmatch(key)]:
        raise ValueError(f"settings are of trainer, model or data, as trainer.max_steps: got {wrong[0]!r}")
    jobs.home.file(name, "json")
    options = [f"--{key}={str(value).lower()}" for key, value in settings.items()]
    files = [str(_configuration(folder, each)) for each in names]
    place = ["--name", name, "--home", str(jobs.home.path)]
    command = [sys.executable, "-m", "fdistill", "submit", *files, *place, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["it was refused"])[-1].removeprefix("fdistill: error: "))


def _configuration(folder: Path, name: str) -> Path:
    """A file of the folder, wherever links lead, with or without .yaml."""
    given = name if name.endswith(".yaml") else f"{name}.yaml"
    file = (folder / given).resolve() if "\0" not in given else folder
    if not file.is_relative_to(folder) or not file.is_file():
        here = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        raise ValueError(f"there is no configuration {name!r}: expected one of {', '.join(here[:10]) or 'none'}")
    return file


@contextmanager
def _refusals(status: int = 400) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise HTTPException(status, str(error)) from error
