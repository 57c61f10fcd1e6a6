"""The run's own log: one JSON object a line in metrics.jsonl, which the report and any plotting tool reads."""

import argparse
import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fdistill.files import atomic_write

FILE_NAME = "metrics.jsonl"


class JsonlLogger(Logger):
    """Appends ``{"step": turn, name: value, ...}``; after a resume, the lines of turns that are run again are dropped."""

    def __init__(self, save_dir: str = "runs/default") -> None:
        """Args:
        save_dir: run folder; the file is save_dir/metrics.jsonl and checkpoints go to save_dir/checkpoints.
        """
        super().__init__()
        self._save_dir, self._started = save_dir, False

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
        return self._save_dir

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return self._save_dir

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self._save_dir) / FILE_NAME

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line."""
        if not self._started:
            self._drop_from(step or 0)
            self._started = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **{name: float(value) for name, value in metrics.items()}}) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: argparse.Namespace | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml in the run folder holds them."""

    def _drop_from(self, step: int) -> None:
        lines = []
        if self.path.is_file():
            lines = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) < step]
        atomic_write(self.path, "".join(f"{line}\n" for line in lines))


def _step_of(line: str) -> float:
    """The step of a line; infinite for a line that a kill has torn."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
