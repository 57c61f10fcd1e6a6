"""Learning rates that follow a schedule of the generator's updates."""

import math
from typing import Any

import lightning.pytorch as L

from fdistill.theory.schedules import Schedule
from fdistill.training.run_parts import callbacks_of, generative


class LearningRate(L.Callback):
    """Multiplies the configured rate of every parameter group by `factor` at the generator's update, before each turn.

    Several of them multiply, and `reduce_rates` with them, in whatever order they stand. It keeps no state: a resumed
    run has the rate of an uninterrupted one.
    """

    def __init__(self, factor: Schedule) -> None:
        """Args:
        factor: of the update, >= 0; 1 is the configured rate.
        """
        self.factor = factor

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Set the rates of this turn."""
        module = generative(pl_module)
        schedules = [callback.factor for callback in callbacks_of(trainer) if isinstance(callback, LearningRate)]
        factors = [schedule.at(module.updates) for schedule in schedules]
        if min(factors) < 0:
            raise ValueError(f"LearningRate multiplies by a factor >= 0: got {min(factors)} at update {module.updates}")
        factor = math.prod(factors)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def reduce_rates(trainer: L.Trainer, factor: float) -> None:
    """Multiply every rate by a factor for the rest of the run, whatever schedules act on it before and after.

    Reductions live in one place, the parameter groups' `initial_lr`, on which `LearningRate` builds and which is saved
    with the optimisers.
    """
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group.get("initial_lr", group["lr"]) * factor
            group["lr"] *= factor
