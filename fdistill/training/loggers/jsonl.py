"""metrics.jsonl in the run folder: one object a line, and nothing of a turn twice."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fdistill.core.atomic_files import replace_file

FILE_NAME = "metrics.jsonl"
DEFAULT_FOLDER = "runs/default"


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
        return self._save_dir or DEFAULT_FOLDER

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return self._save_dir or DEFAULT_FOLDER

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.save_dir) / FILE_NAME

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | str], step: int | None = None) -> None:
        """Append one line of numbers and words, without the epoch: the training stream has none."""
        values = {name: v if isinstance(v, str) else float(v) for name, v in metrics.items() if name != "epoch"}
        line = json.dumps({"step": step, **values})
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
            with replace_file(self.path) as kept, self.path.open("rb") as lines:
                kept.writelines(line.rstrip(b"\n") + b"\n" for line in lines if _was_before(turn, line))


def _was_before(turn: int, line: bytes) -> bool:
    """Whether a line is whole, and was written before `turn` began."""
    try:
        values = json.loads(line)
        return values["step"] < turn or (
            values["step"] == turn and not any(name.startswith("loss/") for name in values)
        )
    except (ValueError, KeyError, TypeError):  # of text that is torn
        return False
