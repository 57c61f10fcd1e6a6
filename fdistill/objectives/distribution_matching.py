"""The student's update: descend h(r) (s_q - s_p) at the noised sample, r = p/q; the fake score stands for s_q.

grad D_f(p_t||q_t) = -E[h(r) (s_p - s_q)(x_t) dx_t/dtheta] (f-distill, arXiv 2502.15681), and in denoised form
s_p - s_q = (D_p - D_q) / sigma^2.
"""

import torch
from torch import Tensor

from fdistill.loss_weights import edm_weight


@torch.no_grad()
def matching_direction(
    denoised_teacher: Tensor, denoised_fake: Tensor, weight: Tensor | float, normaliser: Tensor | float
) -> Tensor:
    """normaliser * weight * (D_q - D_p): the gradient of the loss at each generated sample, [B, *sample_shape].

    weight is h(r), [B]; normaliser is [B]. With normaliser 1/sigma^2 the mean over the batch of <direction,
    dx/dtheta> is exactly the gradient of the f-divergence at noise level sigma.
    """
    scale = torch.as_tensor(weight * normaliser, dtype=denoised_fake.dtype, device=denoised_fake.device)
    return scale.reshape(-1, *[1] * (denoised_fake.ndim - 1)) * (denoised_fake - denoised_teacher)


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
