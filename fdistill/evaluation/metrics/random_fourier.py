"""Random Fourier features: finitely many numbers a sample whose products are a Gaussian kernel on average."""

import torch
from torch import Tensor

from fdistill.evaluation.metrics.blocks import blocks, check_features
from fdistill.evaluation.metrics.vendi_kernel import check_bandwidth


def fourier_frequencies(width: int, bandwidth: float, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` frequencies of the kernel `exp(-|x - y|^2 / (2 bandwidth^2))`: float64 [width, count], normal.

    Args:
        width: d, features a sample.
        bandwidth: in (0, inf).
        count: D >= 1.
        generator: its device is that of the result.

    Raises:
        ValueError: for a bandwidth or a count outside its range.
    """
    check_bandwidth("rbf", bandwidth)
    if count < 1:
        raise ValueError(f"random Fourier features need frequencies: expected at least 1, got {count}; 1000 is usual")
    normal = torch.randn(width, count, dtype=torch.float64, device=generator.device, generator=generator)
    return normal / bandwidth


def fourier_features(features: Tensor, frequencies: Tensor) -> Tensor:
    """Return `(cos(w_1 x), ..., cos(w_D x), sin(w_1 x), ..., sin(w_D x)) / sqrt(D)` of every sample, float64 [n, 2D].

    Each row has length one, and the mean of products of two rows over frequencies is the Gaussian kernel, so
    `vendi_score(fourier_features(x, w), order)` estimates the score with that kernel in time linear in n (FKEA, arXiv
    2407.02961). It is biased low, by how much depends on the order:

    * order 2: `E[1 / estimate] = 1 / score + mean_ij (1 - K_ij^2)^2 / (2 D)`, which is relatively less than
      score / (2 D). Orders above 2 count the few largest eigenvalues and are as good or better.
    * order 1: `E[ln estimate] <= ln score`, and the estimate never exceeds 2 D. Where the score is not far below 2 D,
      or much of it comes from many small eigenvalues, that is far off: use `truncated_vendi_score`, or few samples.

    Args:
        features: [n, d], n >= 1.
        frequencies: [d, D] from `fourier_frequencies`; the same for all samples that are compared.

    Raises:
        ValueError: for a wrong shape, a NaN, or frequencies of another width.
    """
    check_features("features", features)
    if frequencies.shape[0] != features.shape[1]:
        raise ValueError(
            f"frequencies belong to one feature space: expected {features.shape[1]} rows, got {frequencies.shape[0]}; "
            "draw them for these features"
        )
    return torch.cat([waves(block, frequencies) for block in blocks(features)])


def waves(block: Tensor, frequencies: Tensor) -> Tensor:
    """Return the same for a float64 block [n, d] on the frequencies' device."""
    phase = block @ frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1) / frequencies.shape[1] ** 0.5
