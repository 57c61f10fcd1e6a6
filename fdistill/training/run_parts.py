"""What callbacks read of a run and Lightning does not declare: its module, its data, its callbacks."""

from typing import Any, cast

import lightning.pytorch as L

from fdistill.data import GenerativeDataModule
from fdistill.training.base import GenerativeModule


def generative(module: L.LightningModule) -> GenerativeModule:
    """The module of a run, every one of which is a `GenerativeModule`."""
    return cast(GenerativeModule, module)


def data_of(trainer: L.Trainer) -> GenerativeDataModule:
    """The data of a run."""
    return cast(Any, trainer).datamodule


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """The callbacks of a run, in the order in which they are called."""
    return cast(Any, trainer).callbacks


def set_callbacks(trainer: L.Trainer, callbacks: list[L.Callback]) -> None:
    """Give a run other callbacks, or another order."""
    cast(Any, trainer).callbacks = callbacks
