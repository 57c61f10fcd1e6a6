"""One process that serves: everything is checked and loaded before a socket listens, and SIGTERM drains."""

import errno
import logging
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import uvicorn

from fdistill.serving.app import Routes, Service, create_app
from fdistill.serving.batcher import Batcher
from fdistill.serving.generators import How
from fdistill.serving.guard import is_loopback, read_token
from fdistill.serving.shelf import Shelf, tidy

_LOG = logging.getLogger(__name__)
DRAIN = 600  # seconds for answers to those that still wait, of whom slow readers are cut then
_BACKLOG = 2048


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: in one line, where the port is in use, or the host is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY only where the protocol is named
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
        return opened
    except OSError as error:
        what = "is in use: give another --port" if error.errno == errno.EADDRINUSE else f"cannot be served: {error}"
        raise OSError(f"{host}:{port} {what}") from error


@dataclass(frozen=True)
class Settings:
    """What is served, and to whom.

    Attributes:
        paths: of generators, see `Shelf`.
        how: they compute.
        host: an address of this machine; one beyond loopback needs a token.
        port: 0 for a free one.
        token_file: see `read_token`.
        queue: images that may be asked for and not yet be answered.
        limit: images of one request.
    """

    paths: Sequence[str]
    how: How
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str | None = None
    queue: int = 1024
    limit: int = 64

    def token(self) -> str | None:
        """The token, once all has been checked that needs no generator.

        Raises:
            ValueError: for what is wrong, in one line.
            OSError: where the port cannot be served, or the token not be read.
        """
        if not 1 <= self.limit <= self.queue:
            raise ValueError(f"limit, of images of one request, lies in [1, queue = {self.queue}]: got {self.limit}")
        if self.how.size < 1:
            raise ValueError(f"max_batch is a number of images and positive: got {self.how.size}")
        token = read_token(self.token_file)
        if token is None and not is_loopback(self.host):
            raise ValueError(
                f"beyond this machine a service wants a token: give --token_file FILE, or leave --host {self.host} out"
            )
        listening(self.host, self.port).close()  # while generators load, nobody should wait for an answer
        return token

    def place(self, port: int) -> str:
        """Where it is, once its port is known."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{port}"


def run(settings: Settings, runs: Routes | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then answer what waits.

    Args:
        settings: what, and to whom.
        runs: see `create_app`.

    Raises:
        ValueError: for settings that are wrong, in one line.
        CheckpointError: where a generator cannot be served.
        OSError: where the port cannot.
        RuntimeError: where the worker died.
    """
    token = settings.token()
    shelf = Shelf(settings.paths, settings.how)
    tidy()
    with listening(settings.host, settings.port) as opened:
        server: uvicorn.Server
        batcher = Batcher(settings.how.size, settings.queue, died=lambda: setattr(server, "should_exit", True))
        config = uvicorn.Config(
            create_app(Service(shelf, batcher, settings.limit), token, runs),
            access_log=False,
            lifespan="off",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=DRAIN,
        )
        server = uvicorn.Server(config)
        _LOG.info("serving %s on %s", ", ".join(shelf.names()), settings.place(opened.getsockname()[1]))
        batcher.start()
        shelf.watch()
        # for what comes before uvicorn listens to signals, and what it raises once more at its end
        before = signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        try:
            server.run(sockets=[opened])
        finally:
            signal.signal(signal.SIGTERM, before)
            shelf.close()
            batcher.close()
    if batcher.error is not None:
        raise RuntimeError(f"the worker died: {batcher.error}")
