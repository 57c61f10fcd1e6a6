"""The process that makes pictures, as whoever asks it sees it: torch, weights and batches are there alone."""

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from fdistill.serving.request import RequestError
from fdistill.serving.settings import How

_BEGIN = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from fdistill.serving.workshop import main
main(int(sys.argv[1]))
"""
_END = 10  # seconds that the process has to end by itself


class Worker:
    """Sends calls to a `Workshop` in a process of its own, which ends when this one does, however that ends.

    Both are of one program, so that what they pickle for each other is read; nothing of a request is.
    """

    def __init__(self, died: Callable[[], None] = lambda: None) -> None:
        """Start it.

        Args:
            died: called, in a thread, where the process ends before `close`.
        """
        self.error: str | None = None
        self._died = died
        self._closing = False
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Any]] = {}
        self._sending = threading.Lock()
        self._connection, other = Pipe()
        with other:
            self._process = start(other)
        self._reader = threading.Thread(target=self._read, name="answers", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self.error is None

    def open(self, paths: Sequence[str], how: How, modules: Sequence[str] = ()) -> list[str]:
        """Load generators: their names.

        Args:
            paths: see `Shelf`.
            how: they compute.
            modules: with classes that they are made of.

        Raises:
            ValueError: for what cannot be served, in one line, or where the process ended.
        """
        try:
            return list(self.call("open", paths, how, modules).result())
        except RequestError as error:
            raise ValueError(self.error or error.message) from error

    def call(self, name: str, *given: Any) -> "Future[Any]":
        """Its answer; whoever cancels the future before leaves, and has no pictures made.

        The future raises a RequestError where the call is refused or the process is dead.
        """
        number, answer = next(self._numbers), Future[Any]()
        self._waiting[number] = answer
        answer.add_done_callback(lambda done: self._settled(number, done))
        self._send(number, name, given)
        if self.error is not None:  # else the reader finds this call when it ends
            self._lose()
        return answer

    async def ask(self, name: str, *given: Any) -> Any:
        """The same for a coroutine, which leaves where it is cancelled."""
        return await asyncio.wrap_future(self.call(name, *given))

    def close(self) -> None:
        """End the process; what it makes is lost."""
        self._closing = True
        self._send(None, "end", ())
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()
        self._connection.close()

    def _send(self, *message: Any) -> None:
        with self._sending, contextlib.suppress(OSError):  # of a dead process, which the reader notices
            self._connection.send(message)

    def _settled(self, number: int, answer: "Future[Any]") -> None:
        self._waiting.pop(number, None)
        if answer.cancelled():
            self._send(number, "leave", ())

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, value = self._connection.recv()
                answer = self._waiting.get(number)
                if answer is not None:
                    _settle(answer, value)
        self.error = f"the worker ended with exit status {self._process.wait()}"
        self._lose()
        if not self._closing:
            self._died()

    def _lose(self) -> None:
        for answer in list(self._waiting.values()):
            _settle(answer, RequestError(f"{self.error}: ask another service", status=503))


def _settle(answer: "Future[Any]", value: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # who asked has left
        (answer.set_exception if isinstance(value, RequestError) else answer.set_result)(value)


def start(connection: Connection) -> "subprocess.Popen[bytes]":
    """A fresh interpreter, for a device that is in use does not survive a fork, with this one's places of modules."""
    command = [sys.executable, "-P", "-c", _BEGIN, str(connection.fileno()), json.dumps(sys.path)]
    # a session of its own: Ctrl-C is for the process that drains
    return subprocess.Popen(command, pass_fds=[connection.fileno()], start_new_session=True)
