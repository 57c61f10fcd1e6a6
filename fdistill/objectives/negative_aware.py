"""DiffusionNFT: reinforcement on the forward process, by denoising towards good samples and away from bad ones."""

import torch
from torch import Tensor

_SMALLEST_ERROR = 1e-5  # that an error is divided by


def optimality(advantage: Tensor) -> Tensor:
    """w = 1/2 + clip(A, +-1) / 2 in [0, 1]: the probability that a sample counts as a good one (arXiv 2509.16117)."""
    return 0.5 + advantage.clamp(-1, 1) / 2


def negative_aware_loss(
    denoised: Tensor, old: Tensor, x_0: Tensor, weight: Tensor, beta: float, normalised: bool = True
) -> Tensor:
    """w |D+ - x_0|^2 + (1 - w) |D- - x_0|^2 with D+- = D_old +- beta (D - D_old), means over entries; [B].

    D_old made the samples. Without normalisation its minimiser is D_old + (2 / beta) Cov(w, x_0 | x_t), the covariance
    under D_old's samples: to first order in 1 / beta the denoiser of p_old(x) exp(2 w / beta) / Z (arXiv 2509.16117,
    in terms of D).

    Args:
        denoised: D(x_t), [B, *sample_shape], with a graph.
        old: D_old(x_t).
        x_0: the samples that were noised.
        weight: w of each, in [0, 1], [B].
        beta: > 0; smaller is a larger step away from D_old.
        normalised: whether each error is divided by its mean absolute value, which brings all noise levels to one
            scale.
    """
    moved = beta * (denoised - old.detach())
    losses = [_error(old.detach() + sign * moved - x_0.detach(), normalised) for sign in (1, -1)]
    return weight * losses[0] + (1 - weight) * losses[1]


def _error(off: Tensor, normalised: bool) -> Tensor:
    off = off.to(torch.promote_types(off.dtype, torch.float32)).flatten(1)
    squared = off.square().mean(1)
    return squared / off.detach().abs().mean(1).clamp_min(_SMALLEST_ERROR) if normalised else squared
