"""LightningModules: training a teacher, and distilling it."""

from fdistill.modules.base import GenerativeModule
from fdistill.modules.distillation import DistillationModule
from fdistill.modules.guard import NonFiniteError
from fdistill.modules.teacher import TeacherModule

__all__ = ["DistillationModule", "GenerativeModule", "NonFiniteError", "TeacherModule"]
