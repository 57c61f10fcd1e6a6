"""What callbacks measure while a run trains: one door to the loggers, to Lightning, and to callbacks that act on it."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fdistill.models.condition import declared
from fdistill.sampling.generator import GenerativeModel
from fdistill.training import GenerativeModule
from fdistill.training.loggers import log_numbers
from fdistill.training.run_parts import callbacks_of


def in_run_precision(trainer: L.Trainer, model: GenerativeModel) -> GenerativeModel:
    """The model, sampling in the precision that the run trains in: callbacks run outside Lightning's own context."""
    model.autocast = torch.bfloat16 if trainer.precision == "bf16-mixed" else None
    return model


def check_no_prompts(callback: L.Callback, module: GenerativeModule) -> None:
    """Raises ValueError where the generator takes prompts: the callback asks for classes in turn, or for nothing."""
    for denoiser in module.denoisers().values():
        if denoiser.takes and not denoiser.num_classes:
            raise ValueError(
                f"{type(callback).__name__} samples without prompts: got a generator that takes "
                f"{declared(denoiser.takes)}; leave it out of trainer.callbacks, with what reads it, and watch a "
                "text-to-image run by SeedDiversity and SampleGrid"
            )


class Listener(L.Callback):
    """A callback that hears of a measurement the moment it is made, wherever it stands in the list of callbacks.

    `trainer.callback_metrics` keeps the last value for ever and cannot say whether it is new. What a listener decides
    is in its state before any checkpoint of the turn is written, because Lightning calls those last.
    """

    def on_measured(self, trainer: L.Trainer, pl_module: GenerativeModule, numbers: Mapping[str, float]) -> None:
        """Called on every rank with the same numbers, measured after turn `trainer.global_step`."""
        raise NotImplementedError


class Monitor(Listener):
    """A listener to one metric; says at the end of the run where nobody measured it."""

    monitor: str

    def __init__(self, **settings: Any) -> None:
        """Args:
        settings: of the other base class, a ModelCheckpoint say.
        """
        super().__init__(**settings)
        self._known: set[str] = set()

    def on_measured(self, trainer: L.Trainer, pl_module: GenerativeModule, numbers: Mapping[str, float]) -> None:
        """Pass the monitored metric on to `on_value`."""
        self._known |= numbers.keys()
        if self.monitor in numbers:
            self.on_value(trainer, numbers[self.monitor])

    def on_value(self, trainer: L.Trainer, value: float) -> None:
        """Called with each new value, on every rank; it may be NaN."""
        raise NotImplementedError

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn where there was nothing to act on."""
        if self.monitor not in self._known:
            known = ", ".join(sorted(self._known)) or "nothing"
            rank_zero_warn(
                f"{type(self).__name__} did nothing: expected measurements of {self.monitor}, this run measured {known}"
                "; correct monitor, or add the callback that measures it (DiversityCallback, StudentDistance)"
            )


def publish(trainer: L.Trainer, pl_module: GenerativeModule, values: Mapping[str, float | Tensor]) -> None:
    """Log numbers measured after this turn, and tell every listener; every rank calls this with the same numbers.

    Call it from `on_train_batch_end`, where Lightning takes numbers for `trainer.callback_metrics` too.
    """
    numbers = {name: float(value) for name, value in values.items()}
    for name, value in numbers.items():
        pl_module.log(name, torch.tensor(value), logger=False, rank_zero_only=True)
    log_numbers(trainer.loggers, numbers, trainer.global_step)
    for callback in callbacks_of(trainer):
        if isinstance(callback, Listener):
            callback.on_measured(trainer, pl_module, numbers)
