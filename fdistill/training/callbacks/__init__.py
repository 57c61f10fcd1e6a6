"""Callbacks decide when, and log; what they compute lives downstairs."""

from fdistill.training.callbacks.checkpoint import LastCheckpoint
from fdistill.training.callbacks.collapse import CollapseCallback
from fdistill.training.callbacks.diversity import DiversityCallback
from fdistill.training.callbacks.fast_networks import FastNetworks
from fdistill.training.callbacks.learning_rate import LearningRate
from fdistill.training.callbacks.monge_gap import MongeGap
from fdistill.training.callbacks.power_averages import PowerAverages
from fdistill.training.callbacks.progress import TurnProgressBar
from fdistill.training.callbacks.ratio_histograms import RatioHistograms
from fdistill.training.callbacks.reward_gap import RewardGap
from fdistill.training.callbacks.sample_grid import SampleGrid
from fdistill.training.callbacks.see_saw import SeeSaw
from fdistill.training.callbacks.seed_diversity import SeedDiversity
from fdistill.training.callbacks.selection import BestCheckpoint, StopEarly
from fdistill.training.callbacks.student_distance import StudentDistance

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
    "RewardGap",
    "SampleGrid",
    "SeeSaw",
    "SeedDiversity",
    "StopEarly",
    "StudentDistance",
    "TurnProgressBar",
]
