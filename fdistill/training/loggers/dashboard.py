"""Weights & Biases: never a question, the turn as every axis, one dashboard run however often a run continues."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

from fdistill.core.atomic_files import atomic_write
from fdistill.training.loggers.jsonl import DEFAULT_FOLDER

if TYPE_CHECKING:
    from wandb import Run

ID_FILE = "wandb_id.txt"
TURN = "trainer/global_step"  # lightning's name of the axis; a turn is one step
SUMMARIES = {  # what the table of runs shows of a curve; the last value of those not named here
    "min,last": (
        "metric/frechet_distance",
        "metric/kernel_distance",
        "metric/pixel_frechet_distance",
        "metric/memorized_fraction",
        "validation/loss",
        "validation/pixel_frechet_distance",
        "collapse/margin/*",
    ),
    "max,last": (
        "metric/precision",
        "metric/recall",
        "metric/coverage",
        "metric/mode_coverage",
        "metric/class_entropy",
        "metric/accuracy",
        "collapse/alarm",
    ),
    "mean,last": ("perf/step_ms", "perf/images_per_second"),
}


class DashboardLogger(WandbLogger):
    """Weights & Biases that never asks a question: online where somebody is logged in, offline elsewhere.

    WANDB_MODE decides where it is set. On the command line a run that continues from a checkpoint continues its run on
    the dashboard too: the run folder's wandb_id.txt holds the id. Turns between the checkpoint and the interruption
    then appear twice, with the same values. Put it after `JsonlLogger`, whose folder holds the checkpoints
    (configs/logger/wandb.yaml).
    """

    def __init__(
        self, project: str = "fdistill", name: str | None = None, id: str | None = None, save_dir: str | None = None
    ) -> None:
        """Args:
        project: on the dashboard.
        name: of the run; None lets the dashboard choose.
        id: of the run, new or to be continued; None for a new one, or the one in wandb_id.txt.
        save_dir: folder for W&B's files, which go to save_dir/wandb. None on the command line is the run folder, and
            runs/default elsewhere.
        """
        folder = cast(str, save_dir)  # Lightning takes None, too
        super().__init__(project=project, name=name, id=id, save_dir=folder, mode=_mode())
        self._wandb_init.pop("anonymous", None)  # lightning passes it, wandb warns that it means nothing any more
        self._run_folder: Path | None = None
        self._waits = False

    def take_default(self, folder: str) -> None:
        """Use `folder` where no save_dir was given."""
        self._save_dir = self._save_dir or folder

    def keep_id_in(self, run_folder: str) -> None:
        """Use the id in `run_folder`, and log nothing until `continue_from` says whether that is a new one."""
        self._run_folder, self._waits = Path(run_folder), True

    @rank_zero_only
    def continue_from(self, turn: int) -> None:
        """Begin: with the id of the run folder where turns have been made before, with a new one otherwise."""
        file = None if self._run_folder is None else self._run_folder / ID_FILE
        if turn and self._id is None and file is not None and file.is_file():
            self._id = file.read_text(encoding="utf-8").strip() or None
        self._waits = False
        if file is not None:
            atomic_write(file, f"{self.experiment.id}\n")

    @property
    def save_dir(self) -> str:
        """Where W&B's folder is."""
        return self._save_dir or DEFAULT_FOLDER

    @property
    def experiment(self) -> "Run":
        """The run on the dashboard; an object that does nothing before it begins, and on other ranks than the first."""
        if self._waits:  # lightning asks before it loads the checkpoint
            return DummyLogger().experiment
        if self._experiment is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # Lightning sets it
            self._begin()
        return super().experiment

    def _begin(self) -> None:
        Path(self.save_dir).mkdir(parents=True, exist_ok=True)  # wandb goes elsewhere where the folder is missing
        self._wandb_init |= {"dir": self.save_dir, "id": self._id}
        run = super().experiment
        for summary, names in SUMMARIES.items():
            for name in names:
                run.define_metric(name, step_metric=TURN, summary=summary)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run on the dashboard: the next fit of this process gets its own, and the same logger the same one."""
        super().finalize(status)
        if self._experiment is not None:
            self._id = self._experiment.id
            self._experiment.finish(exit_code=int(status != "success"))
            self._experiment = None


def _mode() -> str:
    """online, offline, or what WANDB_MODE says.

    Raises:
        ValueError: where WANDB_MODE is online and nobody is logged in, which would end in a question.
    """
    import wandb  # a second of imports that runs without a dashboard do without

    wanted = os.environ.get("WANDB_MODE")
    if wanted and wanted != "online":
        return wanted
    if wandb.login(prompt=False):
        return "online"
    if wanted:
        raise ValueError("WANDB_MODE=online needs a login: got none; run wandb login, or set WANDB_MODE=offline")
    return "offline"
