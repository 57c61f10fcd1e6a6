"""checkpoints/last.ckpt, kept up to date and written at the end as well."""

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Saves last.ckpt every n turns and at the end, and nothing when a turn fails; continue with --ckpt_path last."""

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

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        """Save on schedule."""
        if trainer.global_step % self._every_n_train_steps == 0 and trainer.global_step != self._last_global_step_saved:
            self._save_last_checkpoint(trainer, {})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what came after the last scheduled save."""
        if trainer.global_step != self._last_global_step_saved:
            self._save_last_checkpoint(trainer, {})

    @property
    def state_key(self) -> str:
        """Its own key: a run may have other ModelCheckpoints."""
        return f"LastCheckpoint{{'every_n_turns': {self._every_n_train_steps}}}"
