"""A table of the run for spreadsheets."""

import os

from lightning.pytorch.loggers import CSVLogger

from fdistill.training.loggers.jsonl import DEFAULT_FOLDER


class CsvFiles(CSVLogger):
    """Writes save_dir/csv/version_<n>/metrics.csv; a run that continues writes the next version.

    Put it after `JsonlLogger`, whose folder holds the checkpoints (configs/logger/csv.yaml).
    """

    def __init__(self, save_dir: str | None = None) -> None:
        """Args:
        save_dir: None on the command line is the run folder, and runs/default elsewhere.
        """
        super().__init__(save_dir or DEFAULT_FOLDER, name="csv", flush_logs_every_n_steps=1)
        self._is_default = save_dir is None

    def take_default(self, folder: str) -> None:
        """Use `folder` where no save_dir was given."""
        if self._is_default:
            self._save_dir = self._root_dir = os.fspath(folder)
