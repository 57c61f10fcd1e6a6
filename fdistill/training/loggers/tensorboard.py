"""TensorBoard's event files in the run folder."""

import importlib.util

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from fdistill.training.loggers.jsonl import DEFAULT_FOLDER


class TensorBoardFiles(TensorBoardLogger):
    """Writes save_dir/tensorboard; `tensorboard --logdir runs` shows all runs below a folder.

    Put it after `JsonlLogger`, whose folder holds the checkpoints (configs/logger/tensorboard.yaml).
    """

    def __init__(self, save_dir: str | None = None) -> None:
        """Args:
        save_dir: None on the command line is the run folder, and runs/default elsewhere.

        Raises:
            ValueError: without tensorboard.
        """
        if importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "TensorBoardFiles needs tensorboard: it is not installed; pip install 'fdistill[tensorboard]'"
            )
        super().__init__(save_dir or DEFAULT_FOLDER, name="tensorboard", version="", default_hp_metric=False)
        self._is_default = save_dir is None

    def take_default(self, folder: str) -> None:
        """Use `folder` where no save_dir was given."""
        if self._is_default:
            self._root_dir = folder

    @rank_zero_only
    def continue_from(self, turn: int) -> None:
        """Have TensorBoard forget the turns that are about to run (again), as `JsonlLogger.continue_from` does."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        first = turn + 1 if turn else 0  # values of step `turn` were measured before the turn, or come out the same
        start = Event(step=first, session_log=SessionLog(status=SessionLog.START))
        self.experiment.file_writer.add_event(start)
