"""Vendi score: the effective number of different samples under the cosine kernel (arXiv 2210.02410)."""

import math

import torch
from torch import Tensor

from fdistill.metrics.checks import checked_features


def vendi_score(features: Tensor, order: float = 1.0) -> Tensor:
    """Return the score, a float64 scalar in [1, min(n, d)]; 1 when all samples point the same way.

    With lambda the eigenvalues of K / n, K the cosines of all pairs: `(sum lambda^q)^{1 / (1 - q)}`, at q = 1
    `exp(-sum lambda ln lambda)`, at q = inf `1 / max lambda` (arXiv 2310.12952 for orders other than 1).

    Args:
        features: [n, d], n >= 2, no row zero. Centre them on the reference first: the score of features that are all
            positive stays near 1 whatever the samples.
        order: q in (0, inf]. Small orders count rare samples, inf only the most common direction.

    Raises:
        ValueError: for a wrong shape, fewer than two samples, a NaN, a zero row, or an order outside (0, inf].
    """
    if not order > 0:
        raise ValueError(f"order lies in (0, inf]: got {order}; 1 is the usual score")
    features = checked_features("features", features)
    norm = features.norm(dim=1, keepdim=True)
    zero = int((norm == 0).sum())
    if zero:
        raise ValueError(
            f"every feature row has a direction: expected 0 zero rows, got {zero} of {len(features)}; "
            "use another extractor or centre the features"
        )
    share = _spectrum(features / norm)
    if order == 1:
        return torch.exp(-(share * share.log()).sum())
    if math.isinf(order):
        return 1 / share.max()
    return share.pow(order).sum().pow(1 / (1 - order))


def _spectrum(unit: Tensor) -> Tensor:
    """Return the eigenvalues > 0 of `unit unit^T / n` for rows of length one, summing to 1."""
    n, d = unit.shape
    gram = unit.T @ unit if d <= n else unit @ unit.T  # both have the same non-zero eigenvalues
    values = torch.linalg.eigvalsh(gram / n)
    # rounding leaves about 1e-17 where zeros belong; at orders below 1 those would be counted as samples
    values = values[values > 1e-12 * values.max()]
    return values / values.sum()
