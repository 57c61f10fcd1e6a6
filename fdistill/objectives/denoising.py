"""Denoising score matching: what the teacher learns from data and the fake score from the student's samples."""

from torch import Tensor

from fdistill.loss_weights import edm_weight


def denoising_loss(denoised: Tensor, x_0: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Mean over batch and entries of the EDM-weighted |D(x_0 + sigma eps, sigma) - x_0|^2 (arXiv 2206.00364).

    denoised and x_0 are [B, *sample_shape], sigma [B]; x_0 is detached. Its minimiser over D is E[x_0 | x_t].
    """
    error = (denoised - x_0.detach()).float().square().flatten(1).mean(dim=1)
    return (edm_weight(sigma, sigma_data) * error).mean()
