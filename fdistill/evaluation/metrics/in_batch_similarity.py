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
    return _mean_cosine(_sum_of_directions("features", features), len(features))


class InBatchSimilarity(FeatureMetric):
    """`in_batch_similarity` of all generated samples over all batches and ranks; real ones are left aside.

    Samples are not kept: one float64 row per rank holds their number and the sum of their directions.
    """

    def __init__(self, reset_real_features: bool = True) -> None:
        super().__init__(reset_real_features)
        self.add_rows("generated")  # at most one row [1 + d] between updates, and one per rank when gathered

    def update(self, features: Tensor, real: bool) -> None:
        """Add features [n, d], no row zero; real ones are checked and left aside.

        Raises:
            ValueError: for a wrong shape, a NaN or an infinity, a zero row, or another d than before.
        """
        name = "real features" if real else "generated features"
        check_features(name, features)
        total = _sum_of_directions(name, features)
        if real:
            return
        row = torch.cat([total.new_tensor([len(features)]), total]).to(self.device)
        kept = self.rows("generated")
        if len(kept) and kept.shape[1] != len(row):
            raise ValueError(
                f"all features live in one space: expected {kept.shape[1] - 1} features a sample, "
                f"got {features.shape[1]}; use one extractor for all"
            )
        self.generated = [(kept.sum(0) + row)[None] if len(kept) else row[None]]

    def compute(self) -> Tensor:
        """The mean cosine of all generated samples so far, of all ranks."""
        rows = self.rows("generated")
        count = int(rows[:, 0].sum()) if len(rows) else 0
        self.need("generated", count, minimum=2)
        return _mean_cosine(rows[:, 1:].sum(0), count)


def _mean_cosine(total: Tensor, count: int) -> Tensor:
    return (total.square().sum() - count) / (count * (count - 1))


def _sum_of_directions(name: str, features: Tensor) -> Tensor:
    """Return the sum [d] of the rows of features [n, d], each divided by its length."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for block in blocks(features):
        norm = block.norm(dim=1, keepdim=True)
        if not norm.all():
            raise ValueError(
                f"every row of {name} has a direction: expected 0 zero rows, got {int((norm == 0).sum())}; "
                "use another extractor"
            )
        total += (block / norm).sum(0)
    return total
