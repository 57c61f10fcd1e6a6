"""A progress bar that counts turns up to max_steps: the training stream itself has no end."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import TQDMProgressBar


class TurnProgressBar(TQDMProgressBar):
    """One bar for the whole run, starting where a resumed run continues."""

    def __init__(self, refresh_rate: int = 20) -> None:
        """Args:
        refresh_rate: turns between two updates of the bar.
        """
        super().__init__(refresh_rate=refresh_rate)

    @property
    def total_train_batches(self) -> int | float:
        """max_steps, or infinity where the run has no end."""
        return self.trainer.max_steps if self.trainer.max_steps > 0 else float("inf")

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Name the bar after what is trained."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(type(trainer.lightning_module).__name__.removesuffix("Module"))
        self.train_progress_bar.initial = trainer.global_step

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Without the version number."""
        return {name: value for name, value in super().get_metrics(*args, **kwargs).items() if name != "v_num"}
