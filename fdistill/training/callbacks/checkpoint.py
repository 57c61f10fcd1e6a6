"""checkpoints/last.ckpt, kept up to date, and written at the end and before a signal ends the run as well."""

import signal
from typing import cast

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from fdistill.core.atomic_files import remove_left_overs
from fdistill.core.distributed import on_rank_0
from fdistill.training.callbacks.signals import EndSignals
from fdistill.training.run_parts import callbacks_of, set_callbacks


class LastCheckpoint(ModelCheckpoint):
    """Saves last.ckpt every n turns and at the end, and nothing when a turn fails; continue with --ckpt_path last.

    SIGTERM, SIGUSR1 and SIGUSR2 (pre-emption and time limits) save at the end of the turn, with several ranks of the
    next one, and end the run with status 128 + the signal's number: 143 for SIGTERM. It stands behind all other
    callbacks, so that what they did in a turn is in their state, and their files are written, before last.ckpt says so.
    """

    def __init__(self, every_n_turns: int = 200) -> None:
        """Args:
        every_n_turns: between two saves.
        """
        super().__init__(
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_turns,
            save_on_exception=False,
            enable_version_counter=False,
        )
        self._signals = EndSignals()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Go to the end of the callbacks, and clear away what a killed run was writing."""
        super().setup(trainer, pl_module, stage)
        set_callbacks(trainer, [other for other in callbacks_of(trainer) if other is not self] + [self])
        if stage == "fit":
            folder = cast(str, self.dirpath)  # Lightning's `setup` has found it
            on_rank_0(lambda: remove_left_overs(folder))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen; Lightning has listened for SIGTERM up to here."""
        super().on_train_start(trainer, pl_module)
        self._signals.listen(signal.SIGTERM if trainer.received_sigterm else 0)

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        """Save on schedule, or because a signal asks for the end."""
        number = self._signals.agreed()
        if (number or trainer.global_step % self._every_n_train_steps == 0) and self._is_new(trainer):
            self._save_last_checkpoint(trainer, {})
        if number:
            rank_zero_info(
                f"{signal.Signals(number).name}: saved turn {trainer.global_step} to {self.last_model_path} and ended; "
                "continue with --ckpt_path last"
            )
            raise SystemExit(128 + number)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what came after the last scheduled save."""
        self._signals.close()
        if self._is_new(trainer):
            self._save_last_checkpoint(trainer, {})

    def _is_new(self, trainer: L.Trainer) -> bool:
        return trainer.global_step != self._last_global_step_saved

    @property
    def state_key(self) -> str:
        """Its own key: a run may have other ModelCheckpoints."""
        return f"LastCheckpoint{{'every_n_turns': {self._every_n_train_steps}}}"
