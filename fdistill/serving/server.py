"""One process that serves, beside its worker: all is checked and loaded before a socket listens; SIGTERM drains."""

import contextlib
import gc
import logging
import signal

import uvicorn

from fdistill.serving.app import Routes, Service, create_app
from fdistill.serving.settings import Settings, listening
from fdistill.serving.worker import Worker

_LOG = logging.getLogger(__name__)
DRAIN = 600  # seconds for answers to those that still wait, of whom slow readers are cut then
_DRAIN_OF_THE_DEAD = 5  # seconds for answers that had been made when the worker died


def run(settings: Settings, runs: Routes | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then answer what waits.

    Args:
        settings: what, and to whom.
        runs: see `create_app`.

    Raises:
        ValueError: for settings that are wrong, or a generator that cannot be served, in one line.
        OSError: where the port cannot.
        RuntimeError: where the worker died.
    """
    token = settings.token()
    server: uvicorn.Server | None = None

    def end() -> None:
        if server is not None:
            server.config.timeout_graceful_shutdown = _DRAIN_OF_THE_DEAD
            server.should_exit = True

    with contextlib.closing(Worker(end)) as worker:
        names = worker.open(settings.paths, settings.how, settings.modules)
        service = Service(worker, settings.how.size, settings.queue, settings.limit)
        config = uvicorn.Config(
            create_app(service, token, runs),
            access_log=False,
            proxy_headers=False,  # nobody asks who asks
            lifespan="off",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=DRAIN,
        )
        gc.collect()
        gc.freeze()  # modules, which are nearly all there is: to look through them holds everyone up
        with listening(settings.host, settings.port) as opened:
            server = uvicorn.Server(config)
            _LOG.info("serving %s on %s", ", ".join(names), settings.place(opened.getsockname()[1]))
            # for what comes before uvicorn listens to signals, and what it raises once more at its end
            before = signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
            try:
                if worker.alive:
                    server.run(sockets=[opened])
            finally:
                signal.signal(signal.SIGTERM, before)
        if worker.error is not None:
            raise RuntimeError(worker.error)
