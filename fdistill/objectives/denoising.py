"""Denoising score matching: what the teacher learns from data and the fake score from the student's samples."""

from torch import Tensor

from fdistill.theory.loss_weights import EDMWeight, LossWeight


def denoising_loss(denoised: Tensor, x_0: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Mean over batch and entries of the EDM-weighted |D(x_0 + sigma eps, sigma) - x_0|^2 (arXiv 2206.00364).

    denoised and x_0 are [B, *sample_shape], sigma [B]; x_0 is detached. Its minimiser over D is E[x_0 | x_t].
    """
    return weighted_denoising_loss(denoised, x_0, sigma, EDMWeight(sigma_data))


def weighted_denoising_loss(denoised: Tensor, x_0: Tensor, sigma: Tensor, weight: LossWeight) -> Tensor:
    """The same under any weight: it moves what is learnt first, not the minimiser of a network without limits.

    Where the weight learns, its penalty is part of the loss.
    """
    error = (denoised - x_0.detach()).float().square().flatten(1).mean(dim=1)
    return (weight.denoiser(sigma) * error + weight.penalty(sigma)).mean()
