"""Truncated Vendi score: the largest eigenvalues alone, for more samples than a matrix of all pairs allows."""

from collections.abc import Callable

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.vendi_kernel import Kernel, checked_kernel
from fdistill.evaluation.metrics.vendi_spectrum import check_order, hill_number, without_rounding

OVERSAMPLING = 8
"""Columns iterated beyond those asked for: the last ones asked for converge at the rate of the gap behind these."""

TOLERANCE = 1e-6
"""Largest residual of an eigenvector: each eigenvalue is within this of a true one, mostly within its square."""

MOST_BLOCKS = 4
"""Blocks of the basis before it is cut to its best one: each costs 16 bytes per sample and column."""


def truncated_vendi_score(features: Tensor, bandwidth: float, num_eigenvalues: int, order: float = 1.0) -> Tensor:
    """Return the t-truncated score of the Gaussian kernel, a float64 scalar in [1, t] (arXiv 2410.21719).

    The t largest eigenvalues of K / n are kept and what the others sum to is spread over them evenly:
    `lambda_i + (1 - sum_{j <= t} lambda_j) / t`. At every order that is at most the full score, rises with t, and is
    the full score at t = n. It converges at n = O(t) samples, while the full score of order 1 may still grow at
    20,000: fix t and compare.

    K is formed a block at a time, once in each of the 2 to 25 rounds of the eigensolver; memory is about 200 n t bytes.

    Args:
        features: [n, d], n >= 1.
        bandwidth: of the kernel `exp(-|x - y|^2 / (2 bandwidth^2))`, in (0, inf).
        num_eigenvalues: t in [1, n].
        order: q in (0, inf], as in `vendi_score`.

    Raises:
        ValueError: for a wrong shape, a NaN, or a bandwidth, t or order outside its range.
    """
    check_order(order)
    kernel = checked_kernel(features, "rbf", bandwidth, None)
    if not 1 <= num_eigenvalues <= len(features):
        raise ValueError(
            f"num_eigenvalues lies in [1, n]: expected at most {len(features)}, got {num_eigenvalues}; a few hundred "
            "are usual"
        )
    values = largest_eigenvalues(
        lambda vectors: _product(kernel, features, vectors),
        len(features),
        num_eigenvalues,
        generator_for(0, device=features.device),  # only the start, of which nothing is left in the result
    )
    return hill_number(without_rounding(values + (1 - values.sum()) / num_eigenvalues), order)


def largest_eigenvalues(
    product: Callable[[Tensor], Tensor], size: int, count: int, generator: torch.Generator
) -> Tensor:
    """Return the `count` largest eigenvalues of a symmetric positive semi-definite matrix, float64, falling.

    Block Davidson without a preconditioner, which is block Lanczos, thickly restarted (Stathopoulos, Saad and Wu 1998).
    SciPy's LOBPCG forms the matrix two to three times as often (12, 24, 4 and 14 rounds where this took 6, 9, 2 and 5)
    and works on the CPU alone; its `eigsh` would form it for every single vector.

    Args:
        product: the matrix [size, size], of trace about one, times vectors [size, k].
        size: its number of rows.
        count: in [1, size].
        generator: for the vectors to start from.
    """
    width = min(count + OVERSAMPLING, size)
    start = torch.randn(size, width, dtype=torch.float64, device=generator.device, generator=generator)
    block = torch.linalg.qr(start).Q
    basis = images = block[:, :0]
    while True:
        basis, images = torch.cat([basis, block], 1), torch.cat([images, product(block)], 1)
        projected = basis.T @ images
        values, vectors = (part.flip(-1) for part in torch.linalg.eigh((projected + projected.T) / 2))
        values, vectors = values[:width], vectors[:, :width]
        best, best_images = basis @ vectors, images @ vectors
        residuals = best_images - best * values
        if basis.shape[1] == size or residuals[:, :count].norm(dim=0).max() <= TOLERANCE:
            return values[:count].clamp(min=0)
        if basis.shape[1] + width > MOST_BLOCKS * width:
            basis, images = best, best_images
        block = _orthonormal(residuals[:, : size - basis.shape[1]], basis)


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """Return orthonormal columns of the same span, which is first cleared of the basis."""
    for _ in range(2):  # the first round leaves rounding of the size of the block's smallest columns
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
    return block


def _product(kernel: Kernel, features: Tensor, vectors: Tensor) -> Tensor:
    """Return K / n times vectors [n, k]; every block on and above the diagonal serves its mirror image too."""
    total = torch.zeros_like(vectors)
    for rows, columns, block in kernel.pair_blocks(features):
        total[rows] += block @ vectors[columns]
        if rows != columns:
            total[columns] += block.T @ vectors[rows]
    return total / len(features)
