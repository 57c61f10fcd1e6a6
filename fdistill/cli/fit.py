"""fit, validate, test and predict: a LightningCLI with ${...} interpolation, bare class names and one-line errors."""

import inspect
import typing
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from omegaconf.errors import OmegaConfBaseException

from fdistill import data, objectives, sampling  # noqa: F401, as all below: their classes are known by bare names
from fdistill.cli.commands import UsageError, explain
from fdistill.cli.commands.explain import raised_by_class
from fdistill.cli.commands.yaml_options import read_options_as_yaml_files
from fdistill.cli.runs import RunFolder, changes, check_kept, flat_settings
from fdistill.cli.trainer_flags import check_trainer_flags
from fdistill.core.distributed import on_rank_0
from fdistill.core.presets import configuration
from fdistill.core.yaml_files import parse_yaml, read_yaml
from fdistill.data import GenerativeDataModule
from fdistill.evaluation import features, metrics  # noqa: F401
from fdistill.models import networks  # noqa: F401
from fdistill.objectives import image_rewards, pretrained_rewards, reward_algorithms, rewards  # noqa: F401
from fdistill.sampling import grids  # noqa: F401
from fdistill.theory import divergences, loss_weights, noise_levels, paths, preconditioning, schedules  # noqa: F401
from fdistill.training import GenerativeModule, callbacks  # noqa: F401
from fdistill.training.loggers import CsvFiles, DashboardLogger, JsonlLogger, TensorBoardFiles, log_configuration
from fdistill.training.quiet import quiet

set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # ${data.batch_size} resolves under subcommands too

_BESIDE_TRAINER = ("config", "print_config", "seed_everything", "ckpt_path", "weights_only", "verbose")


class TrainingConfig(SaveConfigCallback):
    """Keeps a run the one that its folder holds, and writes config.yaml once training really starts.

    A run that is refused, or a validation, leaves config.yaml as it was. The same goes to the dashboards.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Args:
        args, kwargs: of SaveConfigCallback.
        """
        super().__init__(*args, **kwargs)
        self._folder: RunFolder | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the run folder, before anything is written into it.

        Raises:
            ValueError: on every rank, where another process trains in it, or an older run would be overwritten.
        """
        if stage != "fit":
            return
        folder = RunFolder(cast(str, trainer.log_dir))  # of the logger that `complete` adds
        said = on_rank_0(lambda: folder.enter(self.config.get("ckpt_path")))
        self._folder = folder
        if said is not None:
            rank_zero_info(said)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the settings with those that the checkpoint was made with.

        Raises:
            ValueError: where the run in this folder would continue as another one.
        """
        if trainer.state.fn != TrainerFn.FITTING or "settings" not in checkpoint:
            return
        found = changes(checkpoint["settings"], self.settings(trainer))
        source = Path(cast(str, trainer.ckpt_path))
        if source.resolve().is_relative_to(Path(cast(str, trainer.log_dir)).resolve()):
            check_kept(found, str(source))
        done = checkpoint["global_step"]
        if 0 <= trainer.max_steps <= done:
            rank_zero_info(
                f"{source} has done {done} turns, which trainer.max_steps {trainer.max_steps} ends: raise it"
            )
        if found:
            shown = "; ".join(change.said() for change in found)
            rank_zero_info(f"turn {done} of {source} continues with other settings: {shown}")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the settings."""
        checkpoint["settings"] = self.settings(trainer)

    def settings(self, trainer: L.Trainer) -> dict[str, Any]:
        """What the run is, by full names; its batch is that of all ranks."""
        given = parse_yaml(self.parser.dump(self.config, skip_none=False))
        found = flat_settings({name: given[name] for name in ("seed_everything", "model", "data")})
        found["data.batch_size of all ranks"] = found.pop("data.batch_size", 1) * trainer.world_size
        return found | {"trainer.precision": trainer.precision}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write it."""
        for logger in trainer.loggers:
            if isinstance(logger, DashboardLogger | TensorBoardFiles):
                logger.continue_from(trainer.global_step)
        super().setup(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the folder go."""
        if self._folder is not None:
            self._folder.release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let the folder go."""
        self.teardown(trainer, pl_module, "fit")

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Send it to the dashboards."""
        log_configuration(trainer.loggers, parse_yaml(self.parser.dump(self.config, skip_none=False)))


class TrainerCLI(LightningCLI):
    """`seed_everything` is the one seed of data order and noise; checkpoints are never unpickled."""

    def __init__(self, *args: Any, verb: str | None, **kwargs: Any) -> None:
        """Args:
        verb: the only subcommand that gets a parser, since each costs a tenth of a second.
        args, kwargs: of LightningCLI.
        """
        self._verb = verb
        super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # which one, the instance knows
        """The one that is asked for."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == self._verb}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the seed."""
        for target in ("model.init_args.seed", "data.init_args.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=_seed)

    def _parse_ckpt_path(self) -> None:
        """Nothing: our checkpoints hold no hyper-parameters that could override the command line."""

    def instantiate_classes(self) -> None:
        """With the errors that the classes themselves raise, not what the parser makes of them."""
        try:
            super().instantiate_classes()
        except Exception as error:
            raise raised_by_class(error) from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """With metrics.jsonl in the run folder, which only training writes."""
        settings = self._get(self.config_init, "trainer")
        check_trainer_flags(settings)
        if settings.get("enable_progress_bar") is False and isinstance(settings.get("callbacks"), list):
            kwargs["callbacks"] = [c for c in settings["callbacks"] if not isinstance(c, ProgressBar)]
        trainer = super().instantiate_trainer(**kwargs)
        limit = {"validate": "limit_val_batches", "test": "limit_test_batches"}.get(self.subcommand or "fit")
        if limit is not None and not getattr(trainer, limit):
            raise ValueError(
                f"{self.subcommand} measures batches of the held-out split: got trainer.{limit} 0; give "
                f"--trainer.{limit} 1.0, or use fdistill evaluate"
            )
        _place(trainer, is_fit=self.subcommand in (None, "fit"))
        if self.subcommand not in (None, "fit"):
            trainer.loggers = [logger for logger in trainer.loggers if not isinstance(logger, JsonlLogger)]
        return trainer


def run_trainer(arguments: Sequence[str], run: bool = True) -> TrainerCLI:
    """Parse, build and run the subcommand that the arguments begin with; with run=False (and no subcommand) only build.

    Raises:
        UsageError: for everything that is wrong with arguments or configuration, in one line.
    """
    read_options_as_yaml_files()
    arguments = _with_presets(arguments)
    try:
        with quiet():
            return TrainerCLI(
                GenerativeModule,
                GenerativeDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                save_config_callback=TrainingConfig,
                save_config_kwargs={"overwrite": True},
                parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
                args=arguments,
                run=run,
                verb=arguments[0] if run else None,
            )
    except (ArgumentError, OmegaConfBaseException, UnicodeDecodeError) as error:
        reason = _broken_file(arguments) or _unresolved(error) or explain(str(error), _options())
        raise UsageError(reason) from error


def _place(trainer: L.Trainer, is_fit: bool) -> None:
    """Put the files of all loggers into the run folder."""
    for logger in trainer.loggers:
        if isinstance(logger, JsonlLogger | DashboardLogger | TensorBoardFiles | CsvFiles):
            logger.take_default(trainer.default_root_dir)
    run_folders = (logger.save_dir for logger in trainer.loggers if isinstance(logger, JsonlLogger))
    run_folder = next(run_folders, trainer.default_root_dir)
    for logger in trainer.loggers:
        if isinstance(logger, DashboardLogger) and is_fit:
            logger.keep_id_in(run_folder)


def _seed(value: bool | int) -> int:
    return int(value) if not isinstance(value, bool) else 0


def _options() -> dict[str, Any]:
    """Every option by its full name, with the annotation of its type."""
    names = {f"trainer.{name}": Any for name in inspect.signature(L.Trainer).parameters}
    names |= {f"trainer.{name}": hint for name, hint in typing.get_type_hints(L.Trainer.__init__).items()}
    return (
        {"model": GenerativeModule, "data": GenerativeDataModule, "trainer": None}
        | names
        | dict.fromkeys(_BESIDE_TRAINER)
    )


def _with_presets(arguments: Sequence[str]) -> list[str]:
    """The arguments with the file of each --config that is a preset's name, each in two parts."""
    found: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if equals and flag == "--config":
            found += [flag, str(configuration(value))]
        else:
            found.append(str(configuration(argument)) if found[-1:] in (["--config"], ["-c"]) else argument)
    return found


def _unresolved(error: Exception) -> str | None:
    """Which option has a ${...} that resolves to nothing; None for other errors."""
    place = getattr(error, "full_key", None)
    where = str(place).partition(".")[2].replace("init_args.", "")
    return f"{where}: {error.msg}; correct the ${{...}}, or set what it names" if place else None  # type: ignore[attr-defined]


def _broken_file(arguments: Sequence[str]) -> str | None:
    """What is wrong with the first --config file that is no YAML mapping; None where all are."""
    for path in (Path(value) for flag, value in pairwise(arguments) if flag in ("--config", "-c")):
        if not path.is_file():
            return f"there is no configuration file {path}: check the path, or give a name that fdistill presets lists"
        try:
            value = read_yaml(path)
        except ValueError as error:
            return str(error)
        if not isinstance(value, dict):
            return f"{path} is no configuration: expected a mapping (trainer, model, data), got {type(value).__name__}"
    return None
