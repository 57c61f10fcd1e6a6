"""Where a run's numbers go: metrics.jsonl in the run folder, which the report reads, and a dashboard on request."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from fdistill.files import atomic_write

FILE_NAME = "metrics.jsonl"
_DEFAULT = "runs/default"


class JsonlLogger(Logger):
    """Appends ``{"step": turn, name: value, ...}``; a resumed run continues the file where its checkpoint was saved.

    Lines with a loss/ were written in turn `step`; all others at its end or just before it began.
    """

    def __init__(self, save_dir: str | None = None) -> None:
        """Args:
        save_dir: run folder; the file is save_dir/metrics.jsonl and checkpoints go to save_dir/checkpoints. None on the
            command line is trainer.default_root_dir, and runs/default elsewhere.
        """
        super().__init__()
        self._save_dir = save_dir

    def take_default(self, folder: str) -> None:
        """Use `folder` where no save_dir was given."""
        self._save_dir = self._save_dir or folder

    @property
    def name(self) -> str:
        """No folder of its own below save_dir."""
        return ""

    @property
    def version(self) -> str:
        """No folder of its own below save_dir."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return self._save_dir or _DEFAULT

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return self._save_dir or _DEFAULT

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.save_dir) / FILE_NAME

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line, without the epoch: the training stream has none."""
        line = json.dumps({"step": step, **{name: float(value) for name, value in metrics.items() if name != "epoch"}})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: argparse.Namespace | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml in the run folder holds them."""

    @rank_zero_only
    def continue_from(self, turn: int) -> None:
        """Drop the lines of turns that are about to run (again), and lines that a kill has torn."""
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            atomic_write(self.path, "".join(f"{line}\n" for line in lines if _was_before(turn, line)))


def _was_before(turn: int, line: str) -> bool:
    """Whether a line is whole, and was written before `turn` began."""
    try:
        values = json.loads(line)
        return values["step"] < turn or (
            values["step"] == turn and not any(name.startswith("loss/") for name in values)
        )
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


class DashboardLogger(WandbLogger):
    """Weights & Biases that never asks a question: online where somebody is logged in, offline elsewhere.

    WANDB_MODE decides where it is set. A run that is given the same `id` again continues on the dashboard. Put it after
    `JsonlLogger`, whose folder holds the checkpoints (configs/logger/wandb.yaml).
    """

    def __init__(
        self, project: str = "fdistill", name: str | None = None, id: str | None = None, save_dir: str = "."
    ) -> None:
        """Args:
        project: on the dashboard.
        name: of the run; None lets the dashboard choose.
        id: of a run to continue.
        save_dir: folder for the files of offline runs; they go to save_dir/wandb.
        """
        import wandb  # a second of imports that runs without a dashboard do without

        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        super().__init__(project=project, name=name, id=id, save_dir=save_dir, offline=mode == "offline", mode=mode)
        self._wandb_init.pop("anonymous", None)  # lightning passes it, wandb warns that it means nothing any more
