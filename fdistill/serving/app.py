"""The application: OpenAI's images API, one picture for a page, probes and metrics, around the worker."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from fdistill.serving.guard import Guard
from fdistill.serving.metrics import Metrics
from fdistill.serving.page import page
from fdistill.serving.request import GRID, Request, RequestError
from fdistill.serving.worker import Worker

Routes = Callable[[Worker], APIRouter]  # of training runs, which may be served
_LARGEST_BODY = 64 * 1024  # bytes
_IN_QUERY = ("prompt", "seed", "n", "model")
_LEFT = 499  # the status that nginx writes down for clients that left; nobody reads it


class Service:
    """What requests are answered from.

    Attributes:
        worker: makes the pictures.
        limit: images of one request.
        reserved: images asked for and not yet answered.
    """

    def __init__(self, worker: Worker, size: int, room: int, limit: int) -> None:
        """Args:
        worker: with open generators.
        size: images of a batch.
        room: for images that may be asked for and not yet be answered.
        limit: images of one request.
        """
        self.worker, self.limit, self.reserved = worker, limit, 0
        self.metrics = Metrics(room)
        self.started = int(time.time())
        self._size, self._room, self._seconds = size, room, 0.0

    async def answer(self, http: HttpRequest, asked: Request, kind: str) -> tuple[bytes, int]:
        """The body of files of that kind, and its seed.

        Raises:
            RequestError: where the request is wrong, the queue full, the pictures cannot be made, or the client leaves.
        """
        begin = time.perf_counter()
        n, seed = asked.checked(self.limit)
        if self.reserved + n > self._room:
            wait = max(1, math.ceil(self.reserved / self._size * self._seconds))
            raise RequestError(f"the queue is full: try again in {wait} s", None, 429, "queue_full", wait)
        self.reserved += n
        try:
            given = (asked.model, asked.prompt, asked.size, n, seed, kind)
            body, self._seconds = await _unless_left(http, self.worker.ask("make", *given))
        finally:
            self.reserved -= n
        self.metrics.answered(n, time.perf_counter() - begin)
        return body, seed

    async def names(self) -> list[str]:
        """Of the generators."""
        return [each["name"] for each in (await self.worker.ask("state"))["models"]]


async def _unless_left(http: HttpRequest, answer: Coroutine[Any, Any, Any]) -> Any:
    """The answer; a RequestError where the client leaves before, for whom it is then not made."""
    waiting = asyncio.ensure_future(answer)
    left = asyncio.ensure_future(http.receive())  # all has been read: only http.disconnect can come
    left.add_done_callback(lambda _: waiting.cancel())
    try:
        return await waiting
    except asyncio.CancelledError:
        if left.done() and not left.cancelled():
            raise RequestError("the client left", status=_LEFT) from None
        waiting.cancel()
        raise
    finally:
        left.cancel()


async def json_body(http: HttpRequest) -> bytes:
    """The body of a request that says it is JSON.

    Raises:
        RequestError: for another kind of body, one that is too large, or where the client leaves.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of somebody else cannot send unasked
        raise RequestError(f"the body is JSON, Content-Type: application/json: got {kind[:60] or 'none'}", status=415)
    return await _body(http)


async def _body(http: HttpRequest) -> bytes:
    body = b""
    try:
        async for part in http.stream():
            body += part
            if len(body) > _LARGEST_BODY:
                raise RequestError(f"the body has at most {_LARGEST_BODY:,} bytes", status=413)
    except ClientDisconnect:
        raise RequestError("the client left", status=_LEFT) from None
    return body


def _of_query(http: HttpRequest) -> Request:
    """The request that a query tells, its numbers read from their digits."""
    given: dict[str, Any] = dict(http.query_params)
    if len(given) != len(http.query_params.multi_items()):
        raise RequestError("each field is given once")
    strange = sorted(given.keys() - set(_IN_QUERY))
    if strange:
        raise RequestError(f"{strange[0][:60]} is not honoured here: leave it out", strange[0][:60])
    for name in ("n", "seed"):
        if name in given and given[name].isascii() and given[name].isdigit() and len(given[name]) < 20:
            given[name] = int(given[name])
    return Request.read(given)


def create_app(service: Service, token: str | None = None, runs: Routes | None = None) -> Starlette:
    """The application of a service.

    Args:
        service: answers.
        token: see `Guard`.
        runs: makes the routes of training runs, to which the page then leads.
    """

    async def generations(http: HttpRequest) -> Response:
        asked = Request.read(await json_body(http))
        body, _ = await service.answer(http, asked, asked.output_format or "png")
        return Response(body, media_type="application/json")

    async def generate(http: HttpRequest) -> Response:
        await _body(http)
        body, seed = await service.answer(http, _of_query(http), GRID)
        return Response(body, media_type="image/png", headers={"X-Seed": str(seed)})

    async def refused(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        service.metrics.refused(error.status)
        return JSONResponse(error.as_json(), error.status, error.headers)

    async def unknown(http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{http.method} {http.url.path[:100]}: {str(error.detail).lower()}"
        return JSONResponse(RequestError(what, status=error.status_code).as_json(), error.status_code, error.headers)

    routes: list[BaseRoute] = [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/generate.png", generate),
        *_told(service, runs is not None),
    ]
    handlers: dict[Any, Any] = {RequestError: refused, HTTPException: unknown}
    if runs is not None:
        of_runs = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, exception_handlers=handlers)
        of_runs.include_router(runs(service.worker))
        routes.append(Mount("/", of_runs))
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(Guard, token=token)])


def _told(service: Service, has_runs: bool) -> list[Route]:
    """The routes that tell of the service: its generators, its health, its counts, its page."""
    worker = service.worker

    async def models(_: HttpRequest) -> Response:
        data = [_model(name, service.started) for name in await service.names()]
        return JSONResponse({"object": "list", "data": data})

    async def model(http: HttpRequest) -> Response:
        name, names = http.path_params["name"], await service.names()
        if name not in names:
            said = f"model is one of {', '.join(names)}: got {name[:60]!r}"
            raise RequestError(said, "model", 404, "model_not_found")
        return JSONResponse(_model(name, service.started))

    async def healthz(_: HttpRequest) -> Response:
        return JSONResponse({"alive": worker.alive}, 200 if worker.alive else 503)

    async def readyz(_: HttpRequest) -> Response:
        state = await worker.ask("state")  # 503 of a dead one
        names = [each["name"] for each in state["models"]]
        return JSONResponse({"ready": True, "models": names, "detail": sorted(state["failures"].values())})

    async def metrics(_: HttpRequest) -> Response:
        return Response(*service.metrics.text(await worker.ask("state"), service.reserved))

    async def front(_: HttpRequest) -> Response:
        generators = (await worker.ask("state"))["models"]
        return page("page.html", generators=generators, limit=service.limit, has_runs=has_runs)

    told = {"/v1/models": models, "/v1/models/{name}": model, "/healthz": healthz, "/readyz": readyz}
    told |= {"/metrics": metrics, "/": front}
    return [Route(path, endpoint) for path, endpoint in told.items()]


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "fdistill"}
