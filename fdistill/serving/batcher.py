"""Batches across requests: one thread, one shape: a seed gives the same bytes in any company."""

import contextlib
import logging
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
    parts: list[Tensor] = field(default_factory=list)
    taken: int = 0

    def fits(self, other: "Job") -> bool:
        """Whether both can be in one batch: of one maker, and of conditions of one shape."""
        shapes = [[value.shape for value in job.condition.values()] for job in (self, other)]
        return self.maker is other.maker and shapes[0] == shapes[1]


Share = tuple[Job, range]  # which of a job's pictures are in a batch


class Batcher:
    """Whoever asks submits and waits for the answer; a thread makes one padded batch after another."""

    def __init__(self, size: int, died: Callable[[], None] = lambda: None) -> None:
        """Args:
        size: pictures of every batch; fewer are padded to it, for other shapes give other last bits.
        died: called where the thread ends by an error that is not one of a batch; nothing is answered then.
        """
        self.size, self._died = size, died
        self.batches = self.made = self.dropped = 0
        self.seconds = 0.0
        self._jobs: deque[Job] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """Queue a job."""
        with self._change:
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
        try:
            while batch := self._next():
                self._make(batch)
                del batch  # while the next is waited for, the generator of this one may be taken away
        except BaseException as error:
            _LOG.critical("no more pictures are made: %s: %s", type(error).__name__, error)
            self._died()

    def _next(self) -> list[Share]:
        """The shares of the next batch, in the order of arrival; none at the end."""
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
            batch: list[Share] = []
            free = self.size
            for job in waiting:
                if free and job.fits(waiting[0]):
                    count = min(job.n - job.taken, free)
                    batch.append((job, range(job.taken, job.taken + count)))
                    job.taken += count
                    free -= count
            self._jobs = deque(job for job in waiting if job.taken < job.n)
            return batch

    def _make(self, batch: Sequence[Share]) -> None:
        """One padded batch; an error of its numbers or its memory is answered to whom it concerns."""
        begin = time.perf_counter()
        maker, wanted = batch[0][0].maker, sum(len(indices) for _, indices in batch)
        missing = self.size - wanted
        try:
            noise = [maker.noise(generator_for(job.seed, index)) for job, indices in batch for index in indices]
            noise.append(noise[0].expand(missing, *noise[0].shape[1:]))
            conditions = [job.condition.repeat(len(indices)) for job, indices in batch]
            conditions.append(batch[0][0].condition.repeat(missing))
            made = maker.make(torch.cat(noise), Condition.cat(conditions), wanted)
        except (ValueError, RuntimeError, MemoryError) as error:
            if not isinstance(error, ValueError) and not _is_of_memory(error):
                raise
            _LOG.error("a batch failed: %s", error)
            for job, _ in batch:
                self._withdraw(job, error)
            return
        took = time.perf_counter() - begin
        self.seconds += (took - self.seconds) * (_SMOOTH if self.batches else 1)
        self.batches, self.made = self.batches + 1, self.made + wanted
        for (job, indices), rows in zip(batch, made.split([len(indices) for _, indices in batch]), strict=True):
            job.parts.append(rows)
            if indices.stop == job.n:
                self._answer(job)

    def _answer(self, job: Job) -> None:
        made = torch.cat(job.parts)
        finite = made.isfinite().all()
        _settle(job, made if finite else ValueError("pictures are not finite: check the generator's weights"))

    def _withdraw(self, job: Job, error: Exception) -> None:
        with self._change:
            if job in self._jobs:
                self._jobs.remove(job)
        _settle(job, error)


def _is_of_memory(error: Exception) -> bool:
    """Whether there was not enough of it, on a device or, which torch has no class of errors for, on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _settle(job: Job, answer: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # who asked has left
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
