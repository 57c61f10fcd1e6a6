"""One process that serves: everything is checked and loaded before a socket listens, and SIGTERM drains."""

import errno
import logging
import signal
import socket
from collections.abc import Sequence

import uvicorn

from fdistill.serving.app import Routes, Service, create_app
from fdistill.serving.batcher import Batcher
from fdistill.serving.generators import How, Shelf
from fdistill.serving.guard import is_loopback, read_token

_LOG = logging.getLogger(__name__)
_DRAIN = 600  # seconds for answers to those that still wait, of whom slow readers are cut then
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


def run(
    paths: Sequence[str],
    how: How,
    host: str,
    port: int,
    token_file: str | None,
    queue: int,
    limit: int,
    runs: Routes | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what waits.

    Args:
        paths: of generators, see `Shelf`.
        how: they compute.
        host: an address of this machine; one beyond loopback needs a token.
        port: 0 for a free one.
        token_file: see `read_token`.
        queue: images that may be asked for and not yet be answered.
        limit: images of one request.
        runs: see `create_app`.

    Raises:
        ValueError: for arguments that are wrong, in one line.
        CheckpointError: where a generator cannot be served.
        OSError: where the port cannot.
        RuntimeError: where the worker died.
    """
    if not 1 <= limit <= queue:
        raise ValueError(f"limit, of images of one request, lies in [1, queue = {queue}]: got {limit}")
    if how.size < 1:
        raise ValueError(f"max_batch is a number of images and positive: got {how.size}")
    token = read_token(token_file)
    if token is None and not is_loopback(host):
        raise ValueError(
            f"beyond this machine a service wants a token: give --token_file FILE, or leave --host {host} out"
        )
    listening(host, port).close()  # while generators load, nobody should wait for an answer
    shelf = Shelf(paths, how)
    with listening(host, port) as opened:
        server: uvicorn.Server
        batcher = Batcher(how.size, queue, died=lambda: setattr(server, "should_exit", True))
        config = uvicorn.Config(
            create_app(Service(shelf, batcher, limit), token, runs),
            access_log=False,
            lifespan="off",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=_DRAIN,
        )
        server = uvicorn.Server(config)
        place = f"http://{f'[{host}]' if ':' in host else host}:{opened.getsockname()[1]}"
        _LOG.info("serving %s on %s", ", ".join(shelf.names()), place)
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
