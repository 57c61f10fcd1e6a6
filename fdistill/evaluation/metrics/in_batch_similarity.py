"""In-batch similarity: the mean cosine between distinct samples, as f-distill reports it (arXiv 2502.15681)."""

import torch
from torch import Tensor

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import blocks, check_features


def in_batch_similarity(features: Tensor) -> Tensor:
    """Return the mean cosine of all pairs of different rows, a float64 scalar in [-1 / (n - 1), 1]; low is varied.

    `(|sum u|^2 - n) / (n (n - 1))` for the rows u of length one: no pair is formed. Its expectation is the same at
    every n.

    Args:
        features: [n, d], n >= 2, no row zero.

    Raises:
        ValueError: for a wrong shape, fewer than two samples, a NaN, or a zero row.
    """
    check_features("features", features, minimum=2)
    return _mean_cosine(_sum_of_directions(features))


class InBatchSimilarity(FeatureMetric):
    """`in_batch_similarity` of all generated samples over all batches and ranks; real ones are left aside.

    Samples are not kept: one float64 row per rank holds their number and the sum of their directions.
    """

    alone, sums, least = True, True, (2, 0)

    def kept(self, rows: list[Tensor], features: Tensor) -> list[Tensor]:
        return [torch.stack([*(row[0] for row in rows), _sum_of_directions(features)]).sum(0)[None]]

    def measure(self, generated: Tensor, real: Tensor) -> Tensor:
        return _mean_cosine(generated.sum(0))


def _mean_cosine(total: Tensor) -> Tensor:
    """The mean cosine of samples whose number and sum of directions are [1 + d]."""
    count = total[0]
    return (total[1:].square().sum() - count) / (count * (count - 1))


def _sum_of_directions(features: Tensor) -> Tensor:
    """Return the number of rows of features [n, d] and the sum of their directions, [1 + d]."""
    total = torch.zeros(1 + features.shape[1], dtype=torch.float64, device=features.device)
    for block in blocks(features):
        norm = block.norm(dim=1, keepdim=True)
        if not norm.all():
            raise ValueError(
                f"every row of features has a direction: expected 0 zero rows, got {int((norm == 0).sum())}; "
                "use another extractor"
            )
        total[1:] += (block / norm).sum(0)
    total[0] = len(features)
    return total
