"""Truncated Vendi score: the largest eigenvalues alone, for more samples than a matrix of all pairs allows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, lobpcg
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.vendi_kernel import Kernel, checked_kernel
from fdistill.evaluation.metrics.vendi_spectrum import check_order, hill_number, without_rounding

OVERSAMPLING = 8
"""Columns iterated beyond those asked for: the last ones asked for converge at the rate of the gap behind these."""

TOLERANCE = 1e-6
"""Largest residual of an eigenvector: each eigenvalue is within this of a true one, mostly within its square."""

MOST_ROUNDS = 200
"""Of the eigensolver, which forms the matrix once in each."""

DENSE = 5
"""Rows for each vector, below which all eigenvalues at once are faster, and LOBPCG takes them too."""


def truncated_vendi_score(features: Tensor, bandwidth: float, num_eigenvalues: int, order: float = 1.0) -> Tensor:
    """Return the t-truncated score of the Gaussian kernel, a float64 scalar in [1, t] (arXiv 2410.21719).

    The t largest eigenvalues of K / n are kept and what the others sum to is spread over them evenly:
    `lambda_i + (1 - sum_{j <= t} lambda_j) / t`. At every order that is at most the full score, rises with t, and is
    the full score at t = n. It converges at n = O(t) samples, while the full score of order 1 may still grow at
    20,000: fix t and compare.

    K is formed a block at a time, once in each round of the eigensolver; memory is about 200 n t bytes, or 8 n^2 where
    5 (t + 8) > n.

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

    By SciPy's LOBPCG (Knyazev 2001), which takes its products a block of vectors at a time: each forms the matrix anew.

    Args:
        product: the matrix [size, size], of trace about one, times vectors [size, k].
        size: its number of rows.
        count: in [1, size].
        generator: for the vectors to start from.
    """
    device, width = generator.device, count + OVERSAMPLING
    if DENSE * width > size:
        matrix = product(torch.eye(size, dtype=torch.float64, device=device))
        return torch.linalg.eigvalsh(matrix).flip(0)[:count].clamp(min=0)

    def on_device(block: NDArray[Any]) -> NDArray[Any]:
        return product(torch.from_numpy(np.ascontiguousarray(block, np.float64)).to(device)).cpu().numpy()

    start = torch.randn(size, width, dtype=torch.float64, device=device, generator=generator).cpu().numpy()
    operator = LinearOperator((size, size), matvec=on_device, matmat=on_device, dtype=start.dtype)
    values, _ = lobpcg(operator, start, tol=TOLERANCE, maxiter=MOST_ROUNDS, largest=True)
    return torch.from_numpy(values.copy())[:count].clamp(min=0).to(device)


def _product(kernel: Kernel, features: Tensor, vectors: Tensor) -> Tensor:
    """Return K / n times vectors [n, k]; every block on and above the diagonal serves its mirror image too."""
    total = torch.zeros_like(vectors)
    for rows, columns, block in kernel.pair_blocks(features):
        total[rows] += block @ vectors[columns]
        if rows != columns:
            total[columns] += block.T @ vectors[rows]
    return total / len(features)
