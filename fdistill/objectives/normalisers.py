"""Step sizes of matching by noise level or by sample: what multiplies a difference of denoised samples."""

from typing import Literal, get_args

import torch
from torch import Tensor

from fdistill.objectives.base import NoisedSamples, required
from fdistill.theory.loss_weights import edm_weight

Normaliser = Literal["sample", "sigma", "uniform", "vsd"]
"""By sample (DMD), by the noise level's posterior width, 1 at every level (Diff-Instruct), or that of VSD."""


def check_normaliser(name: str) -> None:
    """Raises ValueError for an unknown normaliser."""
    if name not in get_args(Normaliser):
        raise ValueError(f"normaliser is one of {', '.join(get_args(Normaliser))}: got {name!r}")


def normaliser(name: Normaliser, at: NoisedSamples) -> Tensor:
    """The normaliser of that name at each sample, [B] > 0, without gradient."""
    if name == "sample":
        return sample_normaliser(at.x, required(at.teacher))
    if name == "sigma":
        return sigma_normaliser(at.sigma, at.sigma_data)
    return torch.ones_like(at.sigma) if name == "uniform" else vsd_normaliser(at.sigma)


@torch.no_grad()
def sample_normaliser(x: Tensor, denoised_teacher: Tensor) -> Tensor:
    """1 / mean_CHW |x - D_p(x_t)|, [B] (DMD, arXiv 2311.18828).

    It varies from sample to sample and so bends the gradient: by up to 20 degrees in 2 dimensions, 0.5 in 64, and
    its mean is infinite in 1. Use `sigma_normaliser` below about 16 dimensions.
    """
    return 1 / (x - denoised_teacher).abs().flatten(1).mean(dim=1).clamp_min(1e-8)


def sigma_normaliser(sigma: Tensor, sigma_data: float) -> Tensor:
    """sqrt(sigma^2 + sigma_data^2) / (sigma sigma_data), [B]: one over the posterior std of Gaussian data."""
    return edm_weight(sigma, sigma_data).sqrt()


def vsd_normaliser(sigma: Tensor) -> Tensor:
    """sigma / (1 + sigma^2), [B]: ProlificDreamer's weight 1 - alpha_bar on eps_q - eps_p (arXiv 2305.16213).

    In variance-exploding coordinates 1 - alpha_bar = sigma^2 / (1 + sigma^2) and eps = (x_t - D) / sigma.
    """
    return sigma / (1 + sigma.square())
