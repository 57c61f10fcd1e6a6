"""What callbacks measure while a run trains, where loggers, ModelCheckpoint and the selection callbacks find it."""

from collections.abc import Mapping

import lightning.pytorch as L
import torch
from torch import Tensor

from fdistill.loggers import log_numbers
from fdistill.modules import GenerativeModule


def publish(trainer: L.Trainer, pl_module: GenerativeModule, values: Mapping[str, float | Tensor]) -> None:
    """Log numbers measured after this turn, and note in `pl_module.measured` that they are new.

    `trainer.callback_metrics` keeps the last value for ever; `measured` says of which turn it is. Every rank calls this
    with the same numbers.
    """
    numbers = {name: float(value) for name, value in values.items()}
    for name, value in numbers.items():
        pl_module.log(name, torch.tensor(value), logger=False, rank_zero_only=True)
    log_numbers(trainer.loggers, numbers, trainer.global_step)
    pl_module.measured |= {name: (trainer.global_step, value) for name, value in numbers.items()}
