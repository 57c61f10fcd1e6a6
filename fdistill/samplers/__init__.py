"""Samplers of one signature, (denoiser, noise, sigmas, labels, guidance): a student's steps, an ODE, an SDE."""

from fdistill.samplers.base import Sampler, generate
from fdistill.samplers.gaussian_step import DDIM, GDDIM, Euler, Renoising
from fdistill.samplers.heun import Heun
from fdistill.samplers.predictor_corrector import PredictorCorrector
from fdistill.samplers.restart import Restart
from fdistill.samplers.student_steps import multi_step, one_step, renoise

__all__ = [
    "DDIM",
    "GDDIM",
    "Euler",
    "Heun",
    "PredictorCorrector",
    "Renoising",
    "Restart",
    "Sampler",
    "generate",
    "multi_step",
    "one_step",
    "renoise",
]
