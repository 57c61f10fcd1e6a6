"""The application: OpenAI's images API, one picture for a page, probes and metrics, around shelf and batcher."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastapi
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from torch import Tensor

from fdistill.serving.batcher import Batcher, FullError, Job, StoppedError
from fdistill.serving.generators import Generator
from fdistill.serving.guard import Guard
from fdistill.serving.images import Request, RequestError, as_json, as_picture
from fdistill.serving.metrics import Metrics
from fdistill.serving.page import page
from fdistill.serving.shelf import Shelf

Routes = Callable[[Shelf], APIRouter]  # of training runs, which may be served
_LARGEST_BODY = 64 * 1024  # bytes
_IN_QUERY = ("prompt", "seed", "n", "model")
_LEFT = 499  # the status that nginx writes down for clients that left; nobody reads it


class Service:
    """What requests are answered from.

    Attributes:
        shelf: the generators.
        batcher: makes their pictures.
        limit: images of one request.
    """

    def __init__(self, shelf: Shelf, batcher: Batcher, limit: int) -> None:
        self.shelf, self.batcher, self.limit = shelf, batcher, limit
        self.metrics = Metrics(batcher, shelf)
        self.started = int(time.time())
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="files")
        self._text_encoders = ThreadPoolExecutor(1, thread_name_prefix="texts")  # which answer one at a time

    async def answer(
        self, http: fastapi.Request, asked: Request, finish: Callable[[Generator, Tensor, int], Response]
    ) -> Response:
        """Check, wait for the pictures, and let `finish` make the answer of generator, pictures and seed.

        Raises:
            RequestError: where the request is wrong, the queue full, or the pictures cannot be made.
        """
        begin = time.perf_counter()
        generator = self.generator(asked.model)
        n, seed = asked.checked(generator.side, self.limit)
        try:
            self.batcher.reserve(n)
        except FullError as error:
            raise RequestError(str(error), None, 429, "queue_full", error.retry_after) from error
        try:
            pictures = await _unless_left(http, self._pictures(generator, asked.prompt, seed, n))
            if pictures is None:
                return Response(status_code=_LEFT)
            response = await asyncio.get_running_loop().run_in_executor(self._pool, finish, generator, pictures, seed)
        except (ValueError, RuntimeError) as error:  # of the batch; a request's own are found before
            raise RequestError(str(error), status=503 if isinstance(error, StoppedError) else 500) from error
        finally:
            self.batcher.release(n)
        self.metrics.answered(n, time.perf_counter() - begin)
        return response

    def generator(self, name: str | None) -> Generator:
        """The generator that a request names; RequestError where there is none."""
        try:
            return self.shelf.get(name)
        except ValueError as error:
            raise RequestError(str(error), "model", 404, "model_not_found") from error

    async def _pictures(self, generator: Generator, prompt: str, seed: int, n: int) -> Tensor:
        try:
            if generator.reads_text:  # text encoders compute: other requests go on meanwhile
                loop = asyncio.get_running_loop()
                condition = await loop.run_in_executor(self._text_encoders, generator.condition, prompt)
            else:
                condition = generator.condition(prompt)
        except ValueError as error:
            raise RequestError(str(error), "prompt") from error
        return await asyncio.wrap_future(self.batcher.submit(Job(generator, condition, seed, n)).answer)


async def _unless_left(http: fastapi.Request, pictures: Coroutine[Any, Any, Tensor]) -> Tensor | None:
    """The pictures; None where the client leaves before, for whom they are then not made."""
    answer = asyncio.ensure_future(pictures)
    left = asyncio.ensure_future(http.receive())  # all has been read: only http.disconnect can come
    both: list[asyncio.Future[Any]] = [answer, left]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        answer.cancel()
        left.cancel()


async def json_body(http: fastapi.Request) -> bytes:
    """The body of a request that says it is JSON.

    Raises:
        RequestError: for another kind of body, one that is too large, or where the client leaves.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of somebody else cannot send unasked
        raise RequestError(f"the body is JSON, Content-Type: application/json: got {kind[:60] or 'none'}", status=415)
    return await _body(http)


async def _body(http: fastapi.Request) -> bytes:
    body = b""
    try:
        async for part in http.stream():
            body += part
            if len(body) > _LARGEST_BODY:
                raise RequestError(f"the body has at most {_LARGEST_BODY:,} bytes", status=413)
    except ClientDisconnect:
        raise RequestError("the client left", status=_LEFT) from None
    return body


def _of_query(http: fastapi.Request) -> Request:
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


def create_app(service: Service, token: str | None = None, runs: Routes | None = None) -> FastAPI:
    """The application of a service; its documentation pages, which load scripts, are off.

    Args:
        service: answers.
        token: see `Guard`.
        runs: makes the routes of training runs, to which the page then leads.
    """
    app = FastAPI(title="fdistill", docs_url=None, redoc_url=None, openapi_url=None)
    shelf, batcher = service.shelf, service.batcher

    @app.post("/v1/images/generations")
    async def generations(http: fastapi.Request) -> Response:
        asked = Request.read(await json_body(http))

        def finish(generator: Generator, pictures: Tensor, seed: int) -> Response:
            return _json(as_json(pictures, asked, generator.name, generator.side, seed))

        return await service.answer(http, asked, finish)

    @app.get("/v1/generate.png")
    async def generate(http: fastapi.Request) -> Response:
        await _body(http)

        def finish(_: Generator, pictures: Tensor, seed: int) -> Response:
            return Response(as_picture(pictures), media_type="image/png", headers={"X-Seed": str(seed)})

        return await service.answer(http, _of_query(http), finish)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name, service.started) for name in shelf.names()]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        return _model(service.generator(name).name, service.started)

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"alive": batcher.alive}, 200 if batcher.alive else 503)

    @app.get("/readyz")
    async def readyz() -> Response:
        told = {"ready": batcher.alive, "models": shelf.names(), "detail": sorted(shelf.failures.values())}
        return JSONResponse(told, 200 if batcher.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(*service.metrics.text())

    @app.get("/")
    async def front() -> Response:
        return page("page.html", generators=shelf.all(), limit=service.limit, has_runs=runs is not None)

    @app.exception_handler(RequestError)
    async def refused(_: fastapi.Request, error: RequestError) -> Response:
        service.metrics.refused(error.status)
        return JSONResponse(error.as_json(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(http: fastapi.Request, error: HTTPException) -> Response:
        what = f"{http.method} {http.url.path[:100]}: {str(error.detail).lower()}"
        return JSONResponse(RequestError(what, status=error.status_code).as_json(), error.status_code, error.headers)

    if runs is not None:
        app.include_router(runs(shelf))
    app.add_middleware(Guard, token=token)
    return app


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "fdistill"}
