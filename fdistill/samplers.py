"""Samplers of one signature, (denoiser, noise, sigmas, labels, guidance) to samples: a student's steps, or an ODE's."""

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


def multi_step(
    denoiser: Denoiser, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None, guidance: float = 1.0
) -> Tensor:
    """K evaluations, each of the last one's sample noised anew (arXiv 2303.01469, algorithm 1 at epsilon = 0).

    x = D(sigma_1 z_1, sigma_1), then x = D(x + sigma_k z_k, sigma_k) for k = 2 .. K, at sigmas that stay above 0.
    noise holds every z_k, standard normal [B, K, *sample_shape]; a sample is a function of its own.
    """
    if len(sigmas) == 0 or sigmas[-1] <= 0 or noise.shape[1:2] != sigmas.shape:
        raise ValueError(
            "a student of several steps has one block of noise [B, K, ...] for each of its K positive levels: "
            f"got noise of shape {tuple(noise.shape)} and levels {sigmas.tolist()}"
        )
    x = one_step(denoiser, noise[:, 0], sigmas, labels, guidance)
    for z, level in zip(noise[:, 1:].unbind(1), sigmas[1:].to(noise), strict=True):
        x = denoiser.guided(renoise(x, z, level), level.expand(len(x)), labels, guidance)
    return x


def renoise(x: Tensor | None, z: Tensor, sigma: Tensor | float) -> Tensor:
    """What a step of a student sees: x + sigma z, or sigma z in the first step, which has no sample to start from.

    Args:
        x: what the step before made, [B, *sample_shape]; None for the first.
        z: standard normal, [B, *sample_shape].
        sigma: noise level > 0 of the step, one for all or one for each sample [B].

    Raises:
        ValueError: where x or sigma does not fit z.
    """
    if isinstance(sigma, Tensor):
        if sigma.shape not in ((), z.shape[:1]):
            raise ValueError(f"sigma is one noise level, or one per sample ({len(z)}): got shape {tuple(sigma.shape)}")
        sigma = sigma.to(z).reshape(-1, *[1] * (z.ndim - 1))
    if x is None:
        return sigma * z
    if x.shape != z.shape:
        raise ValueError(f"samples get noise of their own shape: expected {tuple(x.shape)}, got {tuple(z.shape)}")
    return x + sigma * z


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
    return renoise(None, noise, levels[0]), levels


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
