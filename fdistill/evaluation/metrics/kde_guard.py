"""Kernel density log-ratio with a guard: in many dimensions it must refuse, not return noise (arXiv 2408.05807)."""

import math

import torch
from torch import Tensor

from fdistill.evaluation.metrics.blocks import check_features, squared_distances

# scikit-learn's KernelDensity gives log densities, and not the effective numbers of samples that the guard is about
MIN_EFFECTIVE_SAMPLES = 30
"""Median effective number of samples that a density is read from, below which it is noise."""
PAIRS = 2**22
"""Pairs held at a time: a few matrices of 32 MiB."""


def kernel_log_ratio(points: Tensor, numerator: Tensor, denominator: Tensor, bandwidth: float | None = None) -> Tensor:
    """Return ln p/q at points [k], in float64, p and q the Gaussian kernel densities of two sets of samples.

    With kernels of width h each density is that of the law plus noise N(0, h^2 I), and so is the ratio in the limit
    of many samples. At a point the samples weigh `w_i = exp(-|x - x_i|^2 / (2 h^2))` and count as
    `(sum w)^2 / sum w^2`; in many dimensions one sample outweighs all others and the ratio is a difference of two
    nearest distances. Points should not be among the samples, whose own weight would lift their density.

    Args:
        points: [k, d], k >= 1.
        numerator: samples [n, d] of p, n >= 2.
        denominator: samples [m, d] of q, m >= 2.
        bandwidth: h > 0; None is Scott's rule, the root mean variance of the denominator times
            min(n, m)^{-1 / (d + 4)}.

    Raises:
        ValueError: when the median over the points of the effective number is below 30 on either side; for a wrong
            shape, a NaN, or a bandwidth that is not > 0.
    """
    sides = {"points": (points, 1), "numerator": (numerator, 2), "denominator": (denominator, 2)}
    for name, (side, minimum) in sides.items():
        check_features(name, side, minimum)
        if side.shape[1] != points.shape[1]:
            raise ValueError(
                f"points and samples share one space: expected {points.shape[1]} features in {name}, "
                f"got {side.shape[1]}; use one extractor for all"
            )
    centre = denominator.detach().double().mean(0)
    points, numerator, denominator = (side.detach().double() - centre for side, _ in sides.values())
    if bandwidth is None:
        std = denominator.square().mean().sqrt()
        bandwidth = float(std) * min(len(numerator), len(denominator)) ** (-1 / (points.shape[1] + 4))
    if not bandwidth > 0:
        raise ValueError(
            f"bandwidth of a kernel density: expected > 0, got {bandwidth}; constant samples have no density"
        )
    log_density = {}
    for name, samples in (("numerator", numerator), ("denominator", denominator)):
        log_density[name], effective = _log_density(points, samples, bandwidth)
        median = float(effective.median())
        if median < MIN_EFFECTIVE_SAMPLES:
            raise ValueError(
                f"a kernel density is read from many samples: expected a median effective sample size >= "
                f"{MIN_EFFECTIVE_SAMPLES} of the {name}, got {median:.1f} of {len(samples)} in {points.shape[1]} "
                "dimensions; use a wider kernel, fewer dimensions or a trained classifier's ratio"
            )
    return log_density["numerator"] - log_density["denominator"]


def _log_density(points: Tensor, samples: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Return the log of the mean kernel at points [k], unnormalised, and the effective number of samples [k]."""
    log_sums, log_squares = [], []
    for rows in points.split(max(1, PAIRS // len(samples))):
        exponent = squared_distances(rows, samples).mul_(-0.5 / bandwidth**2)
        log_sums.append(exponent.logsumexp(1))
        log_squares.append(exponent.mul_(2).logsumexp(1))
    log_sum = torch.cat(log_sums)
    return log_sum - math.log(len(samples)), (2 * log_sum - torch.cat(log_squares)).exp()
