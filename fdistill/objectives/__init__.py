"""What the networks descend: denoising, distribution matching, and the adversarial term."""

from fdistill.objectives.adversarial import discriminator_loss, generator_loss
from fdistill.objectives.denoising import denoising_loss
from fdistill.objectives.distribution_matching import matching_direction, sample_normaliser, sigma_normaliser

__all__ = [
    "denoising_loss",
    "discriminator_loss",
    "generator_loss",
    "matching_direction",
    "sample_normaliser",
    "sigma_normaliser",
]
