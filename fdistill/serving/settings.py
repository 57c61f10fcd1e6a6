"""What is served, how it computes and to whom: checked before a generator is loaded, without torch."""

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from fdistill.serving.guard import is_loopback, read_token

_BACKLOG = 2048


@dataclass(frozen=True)
class How:
    """How every generator computes; each setting has its own last bits.

    Attributes:
        size: pictures of every batch, >= 1.
        device: where, as cpu or cuda:1.
        bf16: networks compute in bfloat16 where autocast lets them.
        compiled: networks go through torch.compile.
        decoder: folder of another VAE, as a tiny one, in place of a generator's own.
    """

    size: int = 64
    device: str = "cpu"
    bf16: bool = False
    compiled: bool = False
    decoder: str | None = None


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ValueError: where it is no port.
        OSError: in one line, where the port is in use, or the host is none of this machine.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"a port lies in [0, 65535], where 0 stands for a free one: got {port}")
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
        modules: with classes that generators are made of.
    """

    paths: Sequence[str]
    how: How
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str | None = None
    queue: int = 1024
    limit: int = 64
    modules: Sequence[str] = ()

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
