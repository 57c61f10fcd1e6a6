"""Samplers of one signature, grids of noise levels, and the model around them. It imports models and below."""

from fdistill.sampling.base import Sampler, generate
from fdistill.sampling.gaussian_step import DDIM, GDDIM, Euler, Renoising
from fdistill.sampling.heun import Heun
from fdistill.sampling.predictor_corrector import PredictorCorrector
from fdistill.sampling.restart import Restart
from fdistill.sampling.student_steps import Start, multi_step, one_step, renoise

__all__ = [
    "DDIM",
    "GDDIM",
    "Euler",
    "Heun",
    "PredictorCorrector",
    "Renoising",
    "Restart",
    "Sampler",
    "Start",
    "generate",
    "multi_step",
    "one_step",
    "renoise",
]
