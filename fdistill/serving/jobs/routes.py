"""The runs over HTTP, for the service's application, which asks for its token before it comes here."""

import asyncio
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool

from fdistill.serving.app import json_body
from fdistill.serving.jobs.jobs import Jobs, RunStatus
from fdistill.serving.jobs.look import look
from fdistill.serving.page import page
from fdistill.serving.request import RequestError
from fdistill.serving.worker import Worker

_SETTING = re.compile(r"(?!trainer\.default_root_dir$)(trainer|model|data)(\.[a-z]\w*)+|seed_everything")


class Submission(BaseModel):
    """What POST /v1/runs takes.

    Attributes:
        configs: files of the folder, with or without .yaml, merged in order.
        name: of the run, whose folder is that of the queue and this name.
        settings: numbers, true and false by their full names, as trainer.max_steps.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    configs: list[str]
    name: str
    settings: dict[str, bool | int | float] = {}


def router(home: str | Path, configs: str | Path, worker: Worker) -> APIRouter:
    """The page /runs; GET and POST /v1/runs, GET /v1/runs/NAME and its /look, POST its /stop, /resume and /serve.

    DELETE of the last takes the generator away again, also of a run that is there no more.

    A configuration names classes, which are code: only files of one folder are taken, and settings beside them are
    numbers. A RequestError is raised for what is wrong (400) or not there (404), and for a page of another site (403).

    Args:
        home: folder of the queue.
        configs: folder of the configurations that may be run.
        worker: gets the generators of runs that are to be served.
    """
    jobs, folder = Jobs(home), Path(configs).resolve()
    routes = APIRouter(prefix="/v1/runs", dependencies=[Depends(_of_this_site)])
    submitting = ThreadPoolExecutor(1, "submitting")  # each is a process that imports torch

    @routes.get("")
    async def listed() -> dict[str, Any]:
        found = await run_in_threadpool(lambda: [dataclasses.asdict(run) for run in jobs.all()])
        return {"object": "list", "data": found, "served": (await worker.ask("state"))["added"]}

    @routes.post("", status_code=202)
    async def submit(http: HttpRequest) -> dict[str, Any]:
        body = await json_body(http)
        with _refused():
            done = asyncio.get_running_loop().run_in_executor(submitting, _submit, body, folder, jobs)
            return dataclasses.asdict(await done)

    @routes.get("/{name}")
    def one(name: str) -> dict[str, Any]:
        return dataclasses.asdict(_known(jobs, name)) | {"saved_step": jobs.saved_step(name)}

    @routes.post("/{name}/stop", status_code=202)
    def stop(name: str) -> dict[str, Any]:
        _known(jobs, name)
        with _refused():
            return dataclasses.asdict(jobs.stop(name, wait=False))

    @routes.post("/{name}/resume", status_code=202)
    def resume(name: str) -> dict[str, Any]:
        _known(jobs, name)
        with _refused():
            return dataclasses.asdict(jobs.resume(name))

    @routes.get("/{name}/look")
    async def shown(name: str) -> Response:
        run = await run_in_threadpool(_known, jobs, name)
        with _refused():
            return Response(await look(Path(run.folder)), media_type="application/json")

    @routes.post("/{name}/serve")
    async def serve(name: str) -> dict[str, str]:
        await run_in_threadpool(_known, jobs, name)
        with _refused():
            checkpoint = jobs.home.read(name).checkpoint
            if not checkpoint.is_file():
                raise ValueError(f"{name} has saved no checkpoint yet, so that there is nothing to serve")
        await worker.ask("add", name, str(checkpoint))
        return {"model": name}

    @routes.delete("/{name}/serve")
    async def unserve(name: str) -> dict[str, str]:
        await worker.ask("remove", name)
        return {"model": name}

    return _with_page(routes)


def _with_page(routes: APIRouter) -> APIRouter:
    both = APIRouter()
    both.include_router(routes)
    both.add_api_route("/runs", lambda: page("runs.html"))
    return both


def _submit(body: bytes, folder: Path, jobs: Jobs) -> RunStatus:
    """Run `fdistill submit` in a process of its own: merging configurations imports what they name."""
    try:
        asked = Submission.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ValueError(
            f"a run has configs, a name and settings: {'.'.join(map(str, first['loc']))} {first['msg']}"
        ) from None
    if not asked.configs:
        raise ValueError("configs names one or several configurations: got none")
    if wrong := [key for key in asked.settings if not _SETTING.fullmatch(key)]:
        raise ValueError(f"settings are of trainer, model or data, as trainer.max_steps: got {wrong[0]!r}")
    jobs.home.file(asked.name, "json")  # the name
    files = [str(_configuration(folder, each)) for each in asked.configs]
    options = [f"--{key}={str(value).lower()}" for key, value in asked.settings.items()]
    place = ["--name", asked.name, "--home", str(jobs.home.path)]
    command = [sys.executable, "-m", "fdistill", "submit", *files, *place, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["refused"])[-1].removeprefix("fdistill: error: "))
    return jobs.status(asked.name)


def _configuration(folder: Path, name: str) -> Path:
    """A file of the folder, wherever links lead."""
    given = name if name.endswith(".yaml") else f"{name}.yaml"
    file = folder if "\0" in given else (folder / given).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        here = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        raise ValueError(f"there is no configuration {name!r}: expected one of {', '.join(here[:10]) or 'none'}")
    return file


def _known(jobs: Jobs, name: str) -> RunStatus:
    with _refused(404):
        return jobs.status(name)


def _of_this_site(http: HttpRequest) -> None:
    """Without a token, a page of another site could ask a browser on this machine to stop runs."""
    origin = http.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != http.headers.get("host"):
        raise RequestError(
            f"runs are managed from this service's own pages: got a request of {origin[:100]}", status=403
        )


@contextmanager
def _refused(status: int = 400) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RequestError(str(error), status=status) from error
