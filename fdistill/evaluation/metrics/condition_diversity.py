"""How much the seed changes the picture: likeness and Vendi score of the samples of one condition, for each of many."""

from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.evaluation.metrics.in_batch_similarity import in_batch_similarity
from fdistill.evaluation.metrics.vendi_score import vendi_score


class ConditionDiversity(NamedTuple):
    """Of N conditions, each float64 [N].

    Attributes:
        similarity: mean cosine of two samples of a condition, in [-1 / (S - 1), 1]; 1 where the seed changes nothing.
        vendi: effective number of different samples of a condition, in [1, S]; 1 where the seed changes nothing.
    """

    similarity: Tensor
    vendi: Tensor


def condition_diversity(features: Tensor, centre: Tensor | None = None) -> ConditionDiversity:
    """Return the diversity of the S samples of each of N conditions.

    Args:
        features: [N, S, d], N >= 1, S >= 2; no row at the centre.
        centre: [d], subtracted first, best the mean of real features; None for the origin.

    Raises:
        ValueError: for a wrong shape, fewer than two samples of a condition, a NaN, or a row without direction.
    """
    if not isinstance(features, Tensor) or features.ndim != 3 or not len(features):
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"features hold samples of each condition: expected a tensor [conditions, seeds, d], got {got}"
        )
    moved = features.double() if centre is None else features.double() - centre.double()
    return ConditionDiversity(
        torch.stack([in_batch_similarity(samples) for samples in moved]),
        torch.stack([vendi_score(samples) for samples in moved]),
    )
