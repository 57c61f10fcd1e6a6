"""Callbacks decide when, and log; what they compute lives downstairs."""

from fdistill.callbacks.checkpoint import LastCheckpoint
from fdistill.callbacks.collapse import CollapseCallback
from fdistill.callbacks.diversity import DiversityCallback
from fdistill.callbacks.fast_networks import FastNetworks
from fdistill.callbacks.learning_rate import LearningRate
from fdistill.callbacks.monge_gap import MongeGap
from fdistill.callbacks.power_averages import PowerAverages
from fdistill.callbacks.progress import TurnProgressBar
from fdistill.callbacks.ratio_histograms import RatioHistograms
from fdistill.callbacks.sample_grid import SampleGrid
from fdistill.callbacks.see_saw import SeeSaw
from fdistill.callbacks.selection import BestCheckpoint, StopEarly
from fdistill.callbacks.student_distance import StudentDistance

__all__ = [
    "BestCheckpoint",
    "CollapseCallback",
    "DiversityCallback",
    "FastNetworks",
    "LastCheckpoint",
    "LearningRate",
    "MongeGap",
    "PowerAverages",
    "RatioHistograms",
    "SampleGrid",
    "SeeSaw",
    "StopEarly",
    "StudentDistance",
    "TurnProgressBar",
]
