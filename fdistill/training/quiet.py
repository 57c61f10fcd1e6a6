"""Training without the lines that every run of ours would print and nobody needs."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NOISE = (  # beginnings of warnings that are true of every run of ours and need no action
    "LightningCLI's args parameter is intended to run from within Python",  # we take --debug and --import out first
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # lightning 2.6 under torch 2.13
    r"Found \d+ module\(s\) in eval mode at the start of training",  # the teacher and the moving average
    "FSDP2-wrapped module",  # its halves return the sample that they were given, which nobody writes to
    "Using ModelCheckpoint with manual optimization and every_n_train_steps",  # after the turn is what we want
    r"The '\w+' does not have many workers",  # data in memory is fastest without any
    "The dirpath has changed from",  # of a run that was moved or branches
    r'\.fit\(ckpt_path="last"\) is set, but there is no last checkpoint',  # the first run of the same command
)
_CHATTER = ("Seed set to", "GPU available: False", "TPU available: False", "\N{ELECTRIC LIGHT BULB} Tip:")


@contextmanager
def quiet() -> Iterator[None]:
    """Without those lines; all other warnings stay, each as one line."""
    talkative = [
        logging.getLogger(f"lightning.{name}") for name in ("pytorch.utilities.rank_zero", "fabric.utilities.seed")
    ]
    with warnings.catch_warnings():
        for beginning in _NOISE:
            warnings.filterwarnings("ignore", message=beginning)
        warnings.showwarning = _one_line
        for logger in talkative:
            logger.addFilter(_is_news)
        try:
            yield
        finally:
            for logger in talkative:
                logger.removeFilter(_is_news)


def _one_line(message: Warning | str, *place: Any, **more: Any) -> None:
    """Write a warning as one line, without the line of our code that gave it."""
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_CHATTER)
