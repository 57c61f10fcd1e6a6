"""Memorisation: generated samples that are copies of a training sample rather than new ones."""

from torch import Tensor

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import check_features
from fdistill.evaluation.metrics.neighbours import nearest

COPY_RATIO = 1 / 3
"""A copy is three times closer to one training sample than to any other."""


def memorized(generated: Tensor, training: Tensor, ratio: float = COPY_RATIO) -> Tensor:
    """Return which generated samples are copies, bool [n]: d_1 < ratio d_2, or d_1 = 0.

    d_1 and d_2 are the Euclidean distances to the nearest and the second nearest training sample, so that no scale has
    to be chosen. Chance makes a share of ratio^D copies of new samples, where D is the number of dimensions in which
    the training set varies near by: little in many dimensions, a ninth in the plane. An exact copy counts even where
    the training set holds its original twice; a near copy of such a one does not, as d_2 is as small as d_1.

    Args:
        generated: features [n, d], n >= 1.
        training: features [m, d], m >= 2: the whole training set, or the number means little.
        ratio: in (0, 1).

    Raises:
        ValueError: for a wrong shape, too few samples, a NaN, or a ratio outside (0, 1).
    """
    _check_ratio(ratio)
    check_features("training", training, minimum=2)
    first, second = nearest(generated, training, k=2).distances.unbind(1)
    return (first < ratio * second) | (first == 0)


def memorized_fraction(generated: Tensor, training: Tensor, ratio: float = COPY_RATIO) -> Tensor:
    """Return the share of `memorized` samples, a float64 scalar in [0, 1]; arguments and errors are the same.

    Read it beside the share among held-out real samples, which is what chance gives.
    """
    return memorized(generated, training, ratio).double().mean()


class MemorizedFraction(FeatureMetric):
    """`memorized_fraction` of all samples; real ones are the training set.

    Args:
        ratio: as `memorized` takes it.
        reset_real_features: whether `reset()` forgets the training set too.
    """

    reads = "training"

    def __init__(self, ratio: float = COPY_RATIO, reset_real_features: bool = True) -> None:
        super().__init__(reset_real_features)
        _check_ratio(ratio)
        self.ratio = ratio

    def measure(self, generated: Tensor, real: Tensor) -> Tensor:
        return memorized_fraction(generated, real, self.ratio)


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise ValueError(f"ratio compares the nearest distance with the second: expected it in (0, 1), got {ratio}")
