"""Frechet distance between Gaussian fits of two sets of features (arXiv 1706.08500, eq. 6)."""

import math
from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import blocks, check_pair


def frechet_distance(generated: Tensor, reference: Tensor) -> Tensor:
    """Return the squared 2-Wasserstein distance of the Gaussian fits, a float64 scalar in [0, inf); 0 is best.

    Args:
        generated: features [n, d], n >= 2.
        reference: features [m, d], m >= 2.

    It is biased upwards by about d/n: compare only values at equal n.

    Raises:
        ValueError: for a wrong shape, fewer than two samples, or a NaN.
    """
    check_pair(generated, reference, minimum=2)
    return distance_of_moments(moments(generated), moments(reference))


class FrechetDistance(FeatureMetric):
    """`frechet_distance` of all samples, which are not kept: a mean and a covariance per side stream in float64.

    A rank holds 8 (d^2 + d + 1) bytes per side, 34 MB for 2,048 features, however many samples there are. Moments
    merge by the formula of parallel variances, which centres every block on its own mean: features far from the
    origin lose no digits, and a rank without samples adds nothing.
    """

    sums, least = True, (2, 2)

    def kept(self, rows: list[Tensor], features: Tensor) -> list[Tensor]:
        parts = [Moments.from_row(row[0]) for row in rows]
        return [merged([*parts, moments(features)]).to_row()[None]]

    def measure(self, generated: Tensor, real: Tensor) -> Tensor:
        sides = (merged(map(Moments.from_row, rows)) for rows in (generated, real))
        return distance_of_moments(*sides)


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


class Moments(NamedTuple):
    """Of `count` samples: their mean [d] and the sum of the outer products of what they deviate from it [d, d]."""

    count: Tensor  # type: ignore[assignment]  # [1]; it hides a method of tuples
    mean: Tensor
    scatter: Tensor

    @property
    def covariance(self) -> Tensor:
        """Unbiased [d, d]; of two samples or more."""
        return self.scatter / (self.count - 1)

    @classmethod
    def from_row(cls, row: Tensor) -> "Moments":
        d = math.isqrt(len(row) - 1)  # d^2 <= d + d^2 < (d + 1)^2
        count, mean, scatter = row.split([1, d, d * d])
        return cls(count, mean, scatter.view(d, d))

    def to_row(self) -> Tensor:
        return torch.cat([self.count, self.mean, self.scatter.flatten()])

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both together (Chan, Golub and LeVeque 1983, updating formulae)."""
        count = self.count + other.count
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(gap, gap * (self.count * other.count / count))
        return Moments(count, self.mean + gap * (other.count / count), scatter)


def moments(features: Tensor) -> Moments:
    """Return the moments of features [n, d], n >= 1, in float64."""
    return merged(moments_of(block) for block in blocks(features))


def moments_of(block: Tensor) -> Moments:
    """Return the moments of one block of rows [n, d], n >= 1, in its own type."""
    mean = block.mean(0)
    centred = block - mean
    return Moments(block.new_tensor([len(block)]), mean, centred.T @ centred)


def merged(parts: Iterable[Moments]) -> Moments:
    """Return the moments of all parts together."""
    return reduce(Moments.merge, parts)


def distance_of_moments(first: Moments, second: Moments) -> Tensor:
    """Return the Frechet distance of Gaussians with these means and their unbiased covariances."""
    return gaussian_frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


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
