"""Learning rates that follow a schedule of the generator's updates."""

import lightning.pytorch as L

from fdistill.modules import GenerativeModule
from fdistill.schedules import Schedule


class LearningRate(L.Callback):
    """Multiplies the configured rate of every parameter group by `factor` at the generator's update, before each turn.

    It keeps no state: a resumed run has the rate of an uninterrupted one.
    """

    def __init__(self, factor: Schedule) -> None:
        """Args:
        factor: of the update, >= 0; 1 is the configured rate.
        """
        self.factor = factor

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: GenerativeModule, *args: object) -> None:
        """Set the rates of this turn."""
        factor = self.factor.at(pl_module.updates)
        if factor < 0:
            raise ValueError(f"LearningRate multiplies by a factor >= 0: got {factor} at update {pl_module.updates}")
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
