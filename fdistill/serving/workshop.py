"""What runs in the worker's process: loads generators, answers calls, and ends when nobody can ask any more."""

import contextlib
import importlib
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from torch import Tensor

from fdistill.core.devices import usable_device
from fdistill.serving.batcher import Batcher, Job
from fdistill.serving.generators import Generator
from fdistill.serving.images import as_json, as_picture
from fdistill.serving.log import log_to_stderr
from fdistill.serving.request import GRID, RequestError
from fdistill.serving.settings import How
from fdistill.serving.shelf import Shelf, tidy

_LOG = logging.getLogger(__name__)
_AT_ONCE = 2**13  # values of pictures, whose files take half a millisecond, and a thread that wants Python's lock more


class Workshop:
    """Answers calls (number, name, arguments) of one connection by (number, answer); a RequestError refuses.

    The thread that reads never waits: what computes or loads is done in others.
    """

    def __init__(self, connection: Connection, died: Callable[[], None]) -> None:
        """Args:
        connection: of a `Worker`.
        died: called where no more pictures can be made.
        """
        self._connection, self._died = connection, died
        self._sending = threading.Lock()
        self._files = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="files")
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="texts")  # text encoders answer one at a time
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loading")
        self._asked: dict[int, Future[Tensor]] = {}

    def run(self) -> None:
        """Answer until told to end, or until nobody is there any more."""
        calls: dict[str, Callable[..., None]] = {"open": self.open, "state": self.state, "make": self.make}
        calls |= {"leave": self.leave, "add": self.add, "remove": self.remove}
        with contextlib.suppress(EOFError, OSError):
            while (message := self._connection.recv())[1] != "end":
                number, name, given = message
                calls[name](number, *given)

    def open(self, number: int, paths: Sequence[str], how: How, modules: Sequence[str]) -> None:
        """Load all generators, and begin to make pictures: their names."""

        def load() -> list[str]:
            usable_device(how.device)
            for module in modules:
                importlib.import_module(module)
            self.shelf, self.batcher = Shelf(paths, how), Batcher(how.size, self._died)
            tidy()
            self.batcher.start()
            self.shelf.watch()
            return self.shelf.names()

        self._loading.submit(self._answer, number, 400, load)

    def add(self, number: int, name: str, path: str) -> None:
        """See `Shelf.add`."""
        self._loading.submit(self._answer, number, 400, self.shelf.add, name, path)

    def remove(self, number: int, name: str) -> None:
        """See `Shelf.remove`."""
        self._loading.submit(self._answer, number, 404, self.shelf.remove, name)

    def state(self, number: int) -> None:
        """What is served, and what has been counted."""
        shelf, batcher = self.shelf, self.batcher
        shown = ("name", "side", "asks", "card")
        state: dict[str, Any] = {"models": [{key: getattr(each, key) for key in shown} for each in shelf.all()]}
        state |= {"added": shelf.added(), "failures": dict(shelf.failures), "reloads": shelf.reloads}
        state |= {key: getattr(batcher, key) for key in ("size", "batches", "made", "dropped", "seconds")}
        self._send(number, state)

    def leave(self, number: int) -> None:
        """Nobody waits for this call any more."""
        asked = self._asked.get(number)
        if asked is not None:
            asked.cancel()

    def make(self, number: int, model: str | None, prompt: str, size: str | None, n: int, seed: int, kind: str) -> None:
        """Pictures: the body of the answer, and seconds of a batch.

        Args:
            number: of the call.
            model: name of a generator; None for the only one.
            prompt: see `Generator.condition`.
            size: that of the generator's pictures, or None.
            n: how many.
            seed: see `Job`.
            kind: of files in JSON, or GRID.
        """
        with self._refusing(number):
            try:
                generator = self.shelf.get(model)
            except ValueError as error:
                raise RequestError(str(error), "model", 404, "model_not_found") from error
            if size not in (None, "auto", generator.side):
                raise RequestError(f"size is {generator.side}, that of this generator: got {size[:60]!r}", "size")
            asked = self._asked[number] = Future[Tensor]()

            def written(done: Future[Tensor]) -> tuple[bytes, float]:  # not of `asked`: a cycle would keep the pictures
                pictures = done.result()  # or an error of its batch
                body = as_picture(pictures) if kind == GRID else as_json(pictures, kind, generator.name, seed)
                return body, self.batcher.seconds

            def finish(done: Future[Tensor]) -> None:
                del self._asked[number]
                if done.cancelled():
                    return
                if n * math.prod(generator.shape) <= _AT_ONCE:
                    self._answer(number, 500, written, done)
                else:
                    self._files.submit(self._answer, number, 500, written, done)

            asked.add_done_callback(finish)
            if generator.reads_text:  # other calls go on meanwhile
                self._texts.submit(self._queue, generator, prompt, n, seed, asked)
            else:
                self._queue(generator, prompt, n, seed, asked)

    def _queue(self, generator: Generator, prompt: str, n: int, seed: int, asked: Future[Tensor]) -> None:
        try:
            if not asked.cancelled():
                self.batcher.submit(Job(generator, generator.condition(prompt), seed, n, asked))
        except Exception as error:
            wrong = RequestError(str(error), "prompt") if isinstance(error, ValueError) else error
            with contextlib.suppress(InvalidStateError):  # who asked has left
                asked.set_exception(wrong)

    def _answer(self, number: int, status: int, function: Callable[..., Any], *given: Any) -> None:
        with self._refusing(number, status):
            self._send(number, function(*given))

    @contextlib.contextmanager
    def _refusing(self, number: int, status: int = 500) -> Iterator[None]:
        """Inside, errors are answered; `status` is that of a ValueError."""
        try:
            yield
        except RequestError as error:
            self._send(number, error)
        except ValueError as error:
            self._send(number, RequestError(str(error), status=status))
        except Exception as error:
            _LOG.exception("a call failed")
            self._send(number, RequestError(f"{type(error).__name__}: {error}", status=500))

    def _send(self, number: int, answer: Any) -> None:
        with self._sending, contextlib.suppress(OSError):  # nobody is there: `run` ends
            self._connection.send((number, answer))


def main(descriptor: int) -> None:
    """The process. It ends at once, for nobody waits for what it makes, and its threads would want their modules."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all of a service: the one that asks drains, and tells
    log_to_stderr()
    Workshop(Connection(descriptor), died=lambda: os._exit(1)).run()
    os._exit(0)
