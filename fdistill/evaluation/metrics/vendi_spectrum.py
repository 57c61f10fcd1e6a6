"""Eigenvalues of K / n, which sum to one, and the effective number of them (arXiv 2210.02410, 2310.12952)."""

import math

import torch
from torch import Tensor

from fdistill.evaluation.metrics.vendi_kernel import Kernel, KernelName, add_gram, checked_kernel

LARGEST_SIDE = 10_000
"""Side of the largest dense matrix: 0.8 GB in float64, and minutes of an eigensolver."""


def vendi_spectrum(
    features: Tensor,
    kernel: KernelName = "cosine",
    bandwidth: float | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """Return the shares of the kernel's directions: the eigenvalues of K / n, a float64 [r], falling, summing to 1.

    The r directions whose share is above 1e-12 of the largest. They come from the smaller of the matrices d x d and
    n x n under the cosine, from n x n under the Gaussian.

    Args:
        features: [n, d], n >= 1.
        kernel: "cosine", or "rbf" for `exp(-|x - y|^2 / (2 bandwidth^2))`.
        bandwidth: in (0, inf), of "rbf" alone.
        centre: [d], subtracted first; the Gaussian does not depend on it. None for the origin.

    Raises:
        ValueError: for a wrong shape, a NaN, a row at the centre under the cosine, a bandwidth that does not fit the
            kernel, or a matrix of more than 10,000 rows.
    """
    return spectrum_of(features, checked_kernel(features, kernel, bandwidth, centre))


def spectrum_of(features: Tensor, kernel: Kernel) -> Tensor:
    """Return `vendi_spectrum` for a kernel that is checked."""
    side = min(features.shape) if kernel.bandwidth is None else len(features)
    check_side(side)
    if kernel.bandwidth is None and side == features.shape[1]:
        return shares(cosine_gram(features, kernel))
    dense = torch.zeros(side, side, dtype=torch.float64, device=features.device)
    for rows, columns, block in kernel.pair_blocks(features):
        dense[rows, columns] = block
    return shares(dense)


def cosine_gram(features: Tensor, kernel: Kernel) -> Tensor:
    """Return `sum_i u_i u_i^T` [d, d], float64, on and above the diagonal."""
    gram = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=features.device)
    for rows in kernel.rows(features):
        add_gram(gram, rows)
    return gram


def collision_of(features: Tensor, kernel: Kernel) -> Tensor:
    """Return the mean of K^2 over all pairs of samples, which is the sum of squared shares; any n."""
    n, d = features.shape
    if kernel.bandwidth is None and d <= min(n, LARGEST_SIDE):
        return collision(cosine_gram(features, kernel))
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    for rows, columns, block in kernel.pair_blocks(features):
        total += block.square_().sum() * (1 if rows == columns else 2)
    return total / n**2


def check_side(side: int) -> None:
    """Raise ValueError for a dense matrix with more than LARGEST_SIDE rows."""
    if side > LARGEST_SIDE:
        raise ValueError(
            f"an exact spectrum needs a dense matrix: expected at most {LARGEST_SIDE} rows, got {side}; take order=2, "
            "truncated_vendi_score, random Fourier features, fewer samples or fewer features"
        )


def shares(upper: Tensor) -> Tensor:
    """Return the eigenvalues of a symmetric matrix [m, m] given on and above its diagonal, falling, summing to 1."""
    return without_rounding(torch.linalg.eigvalsh(upper, UPLO="U").flip(0))


def without_rounding(values: Tensor) -> Tensor:
    """Return the values above 1e-12 of the largest, divided by their sum.

    Rounding leaves about 1e-17 where zeros belong; at orders below 1 those would be counted as samples.
    """
    values = values[values > 1e-12 * values.max()]
    return values / values.sum()


def collision(upper: Tensor) -> Tensor:
    """Return the sum of squared shares of such a matrix, the chance to draw one direction twice, without them."""
    trace = upper.diagonal().sum()
    return (2 * upper.triu(1).square().sum() + upper.diagonal().square().sum()) / trace.square()


def hill_number(share: Tensor, order: float) -> Tensor:
    """Return `(sum p^q)^{1 / (1 - q)}`, a float64 scalar in [1, r]: how many even shares are as varied as these.

    At q = 1 its limit `exp(-sum p ln p)`, at q = inf `1 / max p`. It falls with q (arXiv 2310.12952).

    Args:
        share: float64 [r], each in (0, 1], summing to 1.
        order: q in (0, inf].
    """
    logarithm = share.log()
    if order == 1:
        return (-(share * logarithm).sum()).exp()
    if math.isinf(order):
        return 1 / share.max()
    return ((order * logarithm).logsumexp(0) / (1 - order)).exp()  # p^q underflows at large orders


def check_order(order: float) -> None:
    """Raise ValueError for an order outside (0, inf]."""
    if not order > 0:
        raise ValueError(f"order lies in (0, inf]: got {order}; 1 is the usual score")
