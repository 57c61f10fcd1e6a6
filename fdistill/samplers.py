"""Samplers of one signature: (denoiser, noise, sigmas, labels, guidance) to samples, along the probability-flow ODE."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from fdistill.denoiser import Denoiser

Sampler = Callable[[Denoiser, Tensor, Tensor, Tensor | None, float], Tensor]


def one_step(
    denoiser: Denoiser, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None, guidance: float = 1.0
) -> Tensor:
    """G(z) = D(sigma z, sigma): one evaluation at sigmas[0]. noise is standard normal, [B, *sample_shape]."""
    x, levels = _start(noise, sigmas)
    return denoiser.guided(x, levels[0].expand(len(x)), labels, guidance)


def euler(
    denoiser: Denoiser, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None, guidance: float = 1.0
) -> Tensor:
    """First order (DDIM in these coordinates): one evaluation for each of the len(sigmas) - 1 steps."""
    x, levels = _start(noise, sigmas)
    for here, there in itertools.pairwise(levels):
        x = x + (there - here) * _slope(denoiser, x, here, labels, guidance)
    return x


def heun(
    denoiser: Denoiser, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None, guidance: float = 1.0
) -> Tensor:
    """Second order (EDM algorithm 1 without churn, arXiv 2206.00364): 2 evaluations a step, 1 for a last step to 0."""
    x, levels = _start(noise, sigmas)
    for here, there in itertools.pairwise(levels):
        slope = _slope(denoiser, x, here, labels, guidance)
        ahead = x + (there - here) * slope
        if there > 0:
            slope = (slope + _slope(denoiser, ahead, there, labels, guidance)) / 2
        x = x + (there - here) * slope
    return x


def _start(noise: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    falls = sigmas.ndim == 1 and len(sigmas) and sigmas[0] > 0 and (sigmas.diff() < 0).all() and sigmas[-1] >= 0
    if not falls:  # a nan falls nowhere
        raise ValueError(f"a sampling grid falls strictly from a positive level to >= 0: got {sigmas.tolist()}")
    levels = sigmas.to(noise)
    return noise * levels[0], levels


def _slope(denoiser: Denoiser, x: Tensor, sigma: Tensor, labels: Tensor | None, guidance: float) -> Tensor:
    """dx/dsigma = (x - D) / sigma."""
    return (x - denoiser.guided(x, sigma.expand(len(x)), labels, guidance)) / sigma


@torch.no_grad()
def generate(
    sampler: Sampler,
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    guidance: float = 1.0,
    batch_size: int = 500,
) -> Tensor:
    """Run a sampler without gradient in pieces of batch_size, on which the result does not depend."""
    if labels is not None and len(labels) != len(noise):
        raise ValueError(f"generate needs one label per sample: expected {len(noise)}, got {len(labels)}")
    parts = itertools.repeat(None) if labels is None else labels.split(batch_size)
    pieces = zip(noise.split(batch_size), parts, strict=False)
    return torch.cat([sampler(denoiser, z, sigmas, y, guidance) for z, y in pieces])
