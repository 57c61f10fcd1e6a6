"""Weights of the denoising loss |D - x_0|^2 as functions of the noise level."""

from torch import Tensor


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2: unit weight on EDM's raw output (arXiv 2206.00364)."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
