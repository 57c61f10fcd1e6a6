"""Callbacks decide when, and log; what they compute lives downstairs."""

from fdistill.callbacks.checkpoint import LastCheckpoint
from fdistill.callbacks.progress import TurnProgressBar
from fdistill.callbacks.sample_grid import SampleGrid
from fdistill.callbacks.student_distance import StudentDistance

__all__ = ["LastCheckpoint", "SampleGrid", "StudentDistance", "TurnProgressBar"]
