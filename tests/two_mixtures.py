"""Two mixtures whose log ratio is known exactly, and logits of samples of both."""

import torch

from fdistill.evaluation.ratio_calibration import noised_logits
from fdistill.models.networks import GaussianMixture
from fdistill.objectives.log_ratio import ExactRatio
from fdistill.theory.noise_levels import LogUniform

TEACHER, STUDENT = GaussianMixture([[0.6, 0.0]], [0.8]), GaussianMixture([[-0.6, 0.0]], [0.8])
LEVELS = LogUniform(0.2, 2.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def exact(x_t, sigma, labels=None):
    return ExactRatio(TEACHER, STUDENT)(x_t, sigma)


def both_sides(n=20_000, m=30_000, seed=0):
    """Student and teacher samples with their exact log ratios."""
    source = generator(seed)
    clean = STUDENT.sample(n, source)[0].double(), TEACHER.sample(m, source)[0].double()
    return [noised_logits(exact, x_0, None, LEVELS, source) for x_0 in clean]
