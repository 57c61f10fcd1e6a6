"""A progress bar that counts turns up to max_steps: the training stream itself has no end."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import convert_inf


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

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Begin where the run begins; a run that continues in mid-epoch sees no start of an epoch."""
        super().on_train_start(trainer)
        self._name_bar(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Keep the name and the range that the base class resets."""
        super().on_train_epoch_start(trainer)
        self._name_bar(trainer)

    def _name_bar(self, trainer: L.Trainer) -> None:
        bar = self.train_progress_bar
        bar.total, bar.initial = convert_inf(self.total_train_batches), trainer.global_step
        bar.set_description(type(trainer.lightning_module).__name__.removesuffix("Module"))

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Without the version number."""
        return {name: value for name, value in super().get_metrics(*args, **kwargs).items() if name != "v_num"}
