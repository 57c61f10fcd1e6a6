"""LightningModules of teacher and distillation, with all that runs beside them. It imports objectives and below."""

from fdistill.training.base import GenerativeModule
from fdistill.training.distillation import DistillationModule
from fdistill.training.guard import NonFiniteError
from fdistill.training.reward_tuning import RewardTuningModule
from fdistill.training.teacher import TeacherModule

__all__ = ["DistillationModule", "GenerativeModule", "NonFiniteError", "RewardTuningModule", "TeacherModule"]
