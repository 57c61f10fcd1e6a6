"""Which classes or modes generated samples fall into, and which are missing."""

import math

import torch
from torch import Tensor

from fdistill.metrics.checks import checked_labels


def class_entropy(labels: Tensor, num_classes: int) -> Tensor:
    """Return the entropy of the label histogram over ln(num_classes), a float64 scalar in [0, 1].

    1: all classes equally often; 0: one class only. This reads as collapse where the wanted labels are even.

    Args:
        labels: integers [n] in [0, num_classes), usually a classifier's reading of generated samples.
        num_classes: >= 2.

    Raises:
        ValueError: for labels of another shape, type or range, or fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"class entropy compares classes: expected num_classes >= 2, got {num_classes}")
    share = _histogram(labels, num_classes)
    return -torch.special.xlogy(share, share).sum() / math.log(num_classes)


def mode_weight_kl(labels: Tensor, weights: Tensor) -> Tensor:
    """Return KL(p_generated || p_reference) of the mode histograms in nats, a float64 scalar in [0, inf].

    0 ln 0 is 0, so a dropped mode stays finite; a sample in a mode of weight 0 makes it inf. For n samples of the
    right law over M modes the expected value is (M - 1) / (2 n), not 0.

    Args:
        labels: mode of each sample, integers [n] in [0, M).
        weights: how often each mode occurs in the reference [M], >= 0; normalised here.

    Raises:
        ValueError: for labels of another shape, type or range, or weights that are no distribution.
    """
    weights = weights.detach().double()
    if weights.ndim != 1 or not weights.isfinite().all() or bool((weights < 0).any()) or not weights.sum() > 0:
        raise ValueError(
            f"weights hold one number >= 0 per mode, not all zero: got {list(weights.shape)}; pass shares or counts [M]"
        )
    share = _histogram(labels, len(weights))
    reference = (weights / weights.sum()).to(share.device)
    return (torch.special.xlogy(share, share) - torch.special.xlogy(share, reference)).sum().clamp(min=0)


def modes_covered(labels: Tensor, num_modes: int, min_share: float) -> Tensor:
    """Return how many modes hold at least `min_share` of the samples, an int64 scalar in [0, num_modes].

    Args:
        labels: mode of each sample, integers [n] in [0, num_modes).
        num_modes: >= 1.
        min_share: in (0, 1], of all samples; a tenth of the mode's own weight is a usual choice.

    Raises:
        ValueError: for labels of another shape, type or range, or a share outside (0, 1].
    """
    if not 0 < min_share <= 1:
        raise ValueError(f"min_share is a part of all samples: expected it in (0, 1], got {min_share}")
    return (_histogram(labels, num_modes) >= min_share).sum()


def _histogram(labels: Tensor, count: int) -> Tensor:
    """Return the share [count] of samples per label, summing to 1."""
    labels = checked_labels(labels, count)
    return torch.bincount(labels, minlength=count).double() / len(labels)
