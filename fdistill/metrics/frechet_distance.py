"""Frechet distance between Gaussian fits of two sets of features (arXiv 1706.08500, eq. 6)."""

import torch
from torch import Tensor

from fdistill.metrics.checks import checked_pair


def frechet_distance(generated: Tensor, reference: Tensor) -> Tensor:
    """Return the squared 2-Wasserstein distance of the Gaussian fits, a float64 scalar in [0, inf); 0 is best.

    Args:
        generated: features [n, d], n >= 2.
        reference: features [m, d], m >= 2.

    It is biased upwards by about d/n: compare only values at equal n.

    Raises:
        ValueError: for a wrong shape, fewer than two samples, or a NaN.
    """
    generated, reference = checked_pair(generated, reference)
    return gaussian_frechet_distance(
        generated.mean(0), _covariance(generated), reference.mean(0), _covariance(reference)
    )


def gaussian_frechet_distance(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> Tensor:
    """Return `|mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^{1/2})`, a float64 scalar in [0, inf).

    Args:
        mu1, mu2: means [d].
        cov1, cov2: covariances [d, d], symmetric positive semi-definite; singular ones are fine.

    Raises:
        ValueError: when shapes disagree, a number is not finite, or a covariance is not symmetric.
    """
    mu1, cov1 = _checked_gaussian("first", mu1, cov1)
    mu2, cov2 = _checked_gaussian("second", mu2, cov2)
    if mu1.shape != mu2.shape:
        raise ValueError(f"both Gaussians live in one space: expected {len(mu1)} dimensions, got {len(mu2)}")
    # The eigenvalues of C1^{1/2} C2 C1^{1/2} are the squared singular values of C1^{1/2} C2^{1/2}. Taking the latter
    # never forms the square, whose rounding of 1e-16 a root would turn into 1e-8 for singular covariances.
    trace_of_root = torch.linalg.svdvals(_root(cov1) @ _root(cov2)).sum()
    distance = (mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace_of_root
    return distance.clamp(min=0)


def _covariance(features: Tensor) -> Tensor:
    """Return the unbiased covariance [d, d] of features [n, d]."""
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - 1)


def _root(cov: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semi-definite matrix, rounding below zero taken as zero."""
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _checked_gaussian(which: str, mu: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    if mu.ndim != 1 or cov.shape != (len(mu), len(mu)):
        raise ValueError(
            f"the {which} Gaussian has a mean [d] and a covariance [d, d]: "
            f"got {list(mu.shape)} and {list(cov.shape)}; flatten the features"
        )
    if not (mu.isfinite().all() and cov.isfinite().all()):
        raise ValueError(f"the {which} Gaussian holds finite numbers: got a NaN or an infinity; check the samples")
    mu, cov = mu.detach().double(), cov.detach().double()
    if not torch.allclose(cov, cov.T, rtol=1e-5, atol=1e-8 * float(cov.abs().max())):
        gap = float((cov - cov.T).abs().max())
        raise ValueError(
            f"the {which} covariance is symmetric: expected |C - C^T| = 0, got {gap:.3g}; use torch.cov(features.T)"
        )
    return mu, (cov + cov.T) / 2
