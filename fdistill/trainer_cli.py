"""fit, validate, test and predict: a LightningCLI with omegaconf interpolation, bare class names and one-line errors."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from omegaconf.errors import OmegaConfBaseException

from fdistill import callbacks, data, divergences, loggers, networks, noise_levels, paths, preconditioning  # noqa: F401
from fdistill.checkpoints import read_run_checkpoint
from fdistill.commands import UsageError
from fdistill.data import GenerativeDataModule
from fdistill.divergences import FDivergence
from fdistill.modules import GenerativeModule

set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # ${data.batch_size} resolves under subcommands too


class SafeCheckpointIO(TorchCheckpointIO):
    """Loads with weights_only and explains a broken file in one line."""

    def load_checkpoint(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The checkpoint, on the CPU."""
        return read_run_checkpoint(path)


class TrainerCLI(LightningCLI):
    """`seed_everything` is the one seed of data order and noise; checkpoints are never unpickled."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the seed."""
        for target in ("model.init_args.seed", "data.init_args.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=_seed)

    def _parse_ckpt_path(self) -> None:
        """Nothing: our checkpoints hold no hyper-parameters that could override the command line."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """With safe checkpoint reading."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.strategy.checkpoint_io = SafeCheckpointIO()
        return trainer


def run_trainer(arguments: Sequence[str] | None, run: bool = True) -> TrainerCLI:
    """Parse, build and run; with run=False (and no subcommand in the arguments) only build.

    Raises:
        UsageError: for everything that is wrong with arguments or configuration, in one line.
    """
    try:
        return TrainerCLI(
            GenerativeModule,
            GenerativeDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
            args=arguments,
            run=run,
        )
    except (ArgumentError, OmegaConfBaseException) as error:
        raise UsageError(explain(str(error))) from error


def _seed(value: bool | int) -> int:
    return int(value) if not isinstance(value, bool) else 0


def explain(message: str) -> str:
    """The parser's many lines as one: the deepest reason, and the names to choose from where a class is unknown."""
    return " ".join(message.split())
