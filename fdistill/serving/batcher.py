"""Batches across requests: bounded queue, one worker, one shape: a seed gives the same bytes in any company."""

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.models.condition import Condition

_LOG = logging.getLogger(__name__)
_SMOOTH = 0.1  # of the average of seconds for each batch


class Maker(Protocol):
    """What makes pictures in batches of one shape."""

    def noise(self, generator: torch.Generator) -> Tensor:
        """The latent of one picture, [1, *latent_shape]."""
        ...

    def make(self, noise: Tensor, condition: Condition, wanted: int) -> Tensor:
        """The first `wanted` pictures, [wanted, C, H, W] in [-1, 1], of a whole batch of noise and conditions."""
        ...


class FullError(Exception):
    """There is no room for so many more pictures."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full: try again in {retry_after} s")
        self.retry_after = retry_after


class StoppedError(RuntimeError):
    """The service stops, and makes no more pictures."""


@dataclass(eq=False)
class Job:
    """Some pictures of one seed and one condition.

    Attributes:
        maker: whose batches they are made in, also where it is replaced meanwhile.
        condition: of one row.
        seed: in [0, 2^63); picture i is a function of (seed, i) and the condition.
        n: how many.
        answer: float32 [n, C, H, W]; whoever cancels it before has its pictures not made.
    """

    maker: Maker
    condition: Condition
    seed: int
    n: int
    answer: "Future[Tensor]" = field(default_factory=Future)
    rows: list[Tensor] = field(default_factory=list)
    taken: int = 0

    def fits(self, other: "Job") -> bool:
        """Whether both can be in one batch: of one maker, and of conditions of one shape."""
        shapes = [[value.shape for value in job.condition.values()] for job in (self, other)]
        return self.maker is other.maker and shapes[0] == shapes[1]


class Batcher:
    """Whoever asks reserves room, submits, and waits for the answer; a thread makes one padded batch after another."""

    def __init__(self, size: int, room: int, died: Callable[[], None] = lambda: None) -> None:
        """Args:
        size: pictures of every batch; fewer are padded to it, for other shapes give other last bits.
        room: pictures that may be asked for and not yet be answered.
        died: called where the worker ends by an error that is not one of a batch.
        """
        self.size, self.room = size, room
        self.died = died
        self.error: BaseException | None = None
        self.reserved = 0
        self.batches = self.made = self.dropped = 0
        self.seconds = 0.0
        self._jobs: deque[Job] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._thread.is_alive()

    def reserve(self, n: int) -> None:
        """Take room for n pictures, which `release` gives back once they are answered.

        Raises:
            FullError: where there is none.
        """
        with self._change:
            if self.reserved + n > self.room:
                raise FullError(max(1, math.ceil(self.reserved / self.size * self.seconds)))
            self.reserved += n

    def release(self, n: int) -> None:
        """Give room back."""
        with self._change:
            self.reserved -= n

    def submit(self, job: Job) -> Job:
        """Queue a job whose room is reserved.

        Raises:
            StoppedError: where nobody will make it.
        """
        with self._change:
            if self.error is not None or self._closing:
                raise StoppedError("this service stops: ask another one")
            self._jobs.append(job)
            self._change.notify()
        return job

    def close(self) -> None:
        """Make what is queued, and end."""
        with self._change:
            self._closing = True
            self._change.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        batch: list[tuple[Job, int]] = []
        try:
            while batch := self._next():
                self._make(batch)
        except BaseException as error:
            _LOG.critical("the worker died: %s: %s", type(error).__name__, error)
            with self._change:
                self.error = error
                left = {id(job): job for job in (*self._jobs, *(job for job, _ in batch))}
            for job in left.values():
                _settle(job, StoppedError("the worker died: ask another service"))
            self.died()

    def _next(self) -> list[tuple[Job, int]]:
        """The rows of the next batch, (job, index) each, in the order of arrival; empty at the end."""
        with self._change:
            while True:
                waiting = [job for job in self._jobs if not job.answer.cancelled()]
                self.dropped += sum(job.n - job.taken for job in self._jobs) - sum(j.n - j.taken for j in waiting)
                if waiting:
                    break
                self._jobs.clear()
                if self._closing:
                    return []
                self._change.wait()
            rows: list[tuple[Job, int]] = []
            for job in waiting:
                if job.fits(waiting[0]):
                    count = min(job.n - job.taken, self.size - len(rows))
                    rows += [(job, index) for index in range(job.taken, job.taken + count)]
                    job.taken += count
            self._jobs = deque(job for job in waiting if job.taken < job.n)
            return rows

    def _make(self, batch: Sequence[tuple[Job, int]]) -> None:
        """One padded batch; an error of its numbers or its memory is answered to whom it concerns."""
        begin = time.perf_counter()
        jobs = list({id(job): job for job, _ in batch}.values())
        maker, missing = batch[0][0].maker, self.size - len(batch)
        try:
            noise = [maker.noise(generator_for(job.seed, index)) for job, index in batch]
            noise.append(noise[0].expand(missing, *noise[0].shape[1:]))
            conditions = [job.condition for job, _ in batch] + [batch[0][0].condition] * missing
            made = maker.make(torch.cat(noise), Condition.cat(conditions), len(batch))
        except (ValueError, torch.OutOfMemoryError) as error:
            _LOG.error("a batch failed: %s", error)
            for job in jobs:
                self._withdraw(job, error)
            return
        took = time.perf_counter() - begin
        self.seconds += (took - self.seconds) * (_SMOOTH if self.batches else 1)
        self.batches, self.made = self.batches + 1, self.made + len(batch)
        for (job, _), row in zip(batch, made, strict=True):
            job.rows.append(row)
        for job in jobs:
            if len(job.rows) == job.n:
                rows = torch.stack(job.rows)
                finite = rows.isfinite().all()
                _settle(job, rows if finite else ValueError("pictures are not finite: check the generator's weights"))

    def _withdraw(self, job: Job, error: Exception) -> None:
        with self._change:
            if job in self._jobs:
                self._jobs.remove(job)
        _settle(job, error)


def _settle(job: Job, answer: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # who asked has left
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
