"""Signals that ask a run to end (SIGTERM, SLURM's SIGUSR1 and SIGUSR2), remembered until a turn is whole."""

import signal
import threading
from types import FrameType

import torch
import torch.distributed as dist

from fdistill.core.distributed import in_touch, world_size

_NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2")  # the last two are missing on Windows


class EndSignals:
    """Hears the signals instead of Lightning, and lets all ranks agree on the turn after which they end.

    Lightning 2.6.6 saves nothing on SIGTERM and exits with status 0; on SLURM's SIGUSR1 it saves in the middle of a
    turn; its handler enters a collective wherever the signal finds it. Lightning restores the handlers that were there
    before the run when the run is over.
    """

    def __init__(self) -> None:
        self._received = 0
        self._group: dist.ProcessGroup | None = None
        self._asked: tuple[dist.Work, torch.Tensor] | None = None

    def listen(self, received: int = 0) -> None:
        """Begin; every rank calls this.

        Args:
            received: number of a signal that came before, 0 for none.
        """
        self._received, self._asked = received, None
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), self._hear)

    def agreed(self) -> int:
        """Number of a signal that some rank has received, 0 for none; every rank calls this after every turn.

        One process answers at once. Several answer what was known after the turn before: the question travels on the
        CPU while the next turn computes, so that no turn and no device waits for it.
        """
        if self._group is None:
            return self._received
        number = self._answer()
        if not number:
            asked = torch.tensor(self._received)
            self._asked = dist.all_reduce(asked, dist.ReduceOp.MAX, self._group, async_op=True), asked
        return number

    def close(self) -> None:
        """Leave no question behind."""
        self._answer()

    def _answer(self) -> int:
        if self._asked is None:
            return 0
        (work, answer), self._asked = self._asked, None
        with in_touch():
            work.wait()
        return int(answer)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._received = number
