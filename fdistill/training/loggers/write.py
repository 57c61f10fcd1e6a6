"""One call for all loggers of a run: each writes what it can hold, and those that cannot leave it out."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from fdistill.core.distributed import on_rank_0
from fdistill.training.loggers.jsonl import JsonlLogger


def _alone(write: Callable[..., None]) -> Callable[..., None]:
    """Let rank 0 write, which may take its time, and every rank hear of what went wrong; every rank has to call it."""

    @functools.wraps(write)
    def written(loggers: Iterable[Logger], *what: Any) -> None:
        if loggers:
            on_rank_0(lambda: rank_zero_only(write)(loggers, *what))

    return written


@_alone
def log_numbers(loggers: Iterable[Logger], numbers: Mapping[str, float | Tensor], step: int) -> None:
    """Write named scalars; every logger holds them."""
    values = {name: float(value) for name, value in numbers.items()}
    for logger in loggers:
        logger.log_metrics(dict(values), step)


@_alone
def log_words(loggers: Iterable[Logger], name: str, text: str, step: int) -> None:
    """Write a sentence: metrics.jsonl, W&B and TensorBoard hold it."""
    for logger in loggers:
        if isinstance(logger, JsonlLogger | WandbLogger):
            logger.log_metrics(cast("dict[str, float]", {name: text}), step)  # both take words
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, step)


@_alone
def log_picture(loggers: Iterable[Logger], name: str, path: str | Path, step: int) -> None:
    """Copy the PNG at `path`: W&B and TensorBoard hold it.

    Raises:
        OSError: if there is no picture.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.log_metrics({name: wandb.Image(str(path))}, step)
        elif isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")


@_alone
def log_histogram(loggers: Iterable[Logger], name: str, values: Tensor, step: int) -> None:
    """Write the distribution of the finite ones among the `values`, of any shape: W&B and TensorBoard hold it."""
    flat = values.detach().double().flatten().cpu()
    finite = flat[flat.isfinite()].numpy()
    if len(finite) == 0:
        return
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.log_metrics({name: wandb.Histogram(finite)}, step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(name, finite, step)


@rank_zero_only
def log_configuration(loggers: Iterable[Logger], configuration: Mapping[str, Any]) -> None:
    """Write the settings of the run, nested plain values: W&B as its config, TensorBoard as text."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_hyperparams(dict(configuration))
        elif isinstance(logger, TensorBoardLogger):
            text = yaml.safe_dump(dict(configuration), sort_keys=False)
            logger.experiment.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))
