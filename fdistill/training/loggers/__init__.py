"""Where a run's numbers go: metrics.jsonl in the run folder, which the report reads, and dashboards on request."""

from fdistill.training.loggers.csv_files import CsvFiles
from fdistill.training.loggers.dashboard import DashboardLogger
from fdistill.training.loggers.jsonl import FILE_NAME, JsonlLogger
from fdistill.training.loggers.tensorboard import TensorBoardFiles
from fdistill.training.loggers.write import log_configuration, log_histogram, log_numbers, log_picture, log_words

__all__ = [
    "FILE_NAME",
    "CsvFiles",
    "DashboardLogger",
    "JsonlLogger",
    "TensorBoardFiles",
    "log_configuration",
    "log_histogram",
    "log_numbers",
    "log_picture",
    "log_words",
]
