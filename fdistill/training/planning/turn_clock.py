"""How long real turns take, by kind."""

import time
from typing import Any

import lightning.pytorch as L

from fdistill.training.planning.turn_kinds import kind_of


class TurnClock(L.Callback):
    """Seconds of each turn, without fetching its batch; on a device that computes by itself this waits for nothing."""

    def __init__(self, uncounted: int = 0) -> None:
        """Args:
        uncounted: turns at the start that are left out, because they allocate.
        """
        self.uncounted = uncounted
        self.seconds: dict[str, list[float]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        """Start."""
        self._turn, self._started = trainer.global_step, time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        """Stop."""
        seconds = time.perf_counter() - self._started
        if self._turn >= self.uncounted:
            self.seconds.setdefault(kind_of(module, self._turn), []).append(seconds)
