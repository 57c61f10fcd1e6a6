"""What every metric does with its input: refuse what is broken, and read features in float64 a block at a time.

A metric of broken samples must stop, not return a number. No copy of all features in float64 and no matrix of all pairs
is held.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 1024
"""Rows of a block: 16 MiB of 2,048 features, and a matrix product long enough to be fast."""


class NoValueError(ValueError):
    """A metric has no value for these samples, which are sound: a report leaves it empty."""


def check_features(name: str, features: Tensor, minimum: int = 1) -> None:
    """Raise ValueError where features are no matrix [n, d], n >= minimum, of finite real numbers."""
    check_tensor(name, features)
    if features.ndim != 2 or features.shape[1] < 1:
        raise ValueError(
            f"{name} is a matrix of one feature row per sample: expected [n, d], got {list(features.shape)}; "
            "flatten(1) the samples"
        )
    if len(features) < minimum:
        raise ValueError(f"{name} needs at least {minimum} samples, got {len(features)}; generate more")
    # the extremes carry a NaN along, and need no mask of the size of the features
    if len(features) and not torch.stack(features.detach().aminmax()).isfinite().all():
        broken = int((~features.isfinite()).any(dim=1).sum())
        raise ValueError(
            f"{name} holds finite numbers: expected 0 broken rows, got {broken} of {len(features)}; "
            "look for the NaN where the samples are made"
        )


def check_tensor(name: str, value: object) -> None:
    """Raise ValueError for anything but a tensor of real numbers: an array, a list, complex numbers."""
    if not isinstance(value, Tensor) or value.is_complex():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name} is a torch tensor of real numbers: got {got}; torch.as_tensor(...) makes one of an array"
        )


def checked_labels(labels: Tensor, count: int) -> Tensor:
    """Return `labels` [n] as int64, each in [0, `count`); raises ValueError for any other."""
    check_tensor("labels", labels)
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point():
        raise ValueError(
            f"labels hold one whole number per sample: expected an integer tensor [n] with n >= 1, "
            f"got {labels.dtype} {list(labels.shape)}; take the argmax of logits first"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"labels lie in [0, {count}): got {low} to {high}; count the classes again or drop the unlabelled samples"
        )
    return labels.detach().long()


def check_pair(generated: Tensor, reference: Tensor, minimum: int) -> None:
    """Raise ValueError as `check_features` does, for features [n, d] and [m, d], and where their d differs."""
    check_features("generated", generated, minimum)
    check_features("reference", reference, minimum)
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"generated and reference share one feature space: expected {reference.shape[1]} features, "
            f"got {generated.shape[1]}; use one extractor for both"
        )


def check_width(expected: int, features: Tensor) -> None:
    """Raise ValueError where features [n, d] are not as wide as those of the same metric before."""
    if features.shape[1] != expected:
        raise ValueError(
            f"all features live in one space: expected {expected} features a sample, got {features.shape[1]}; "
            "use one extractor for all"
        )


def blocks(features: Tensor, rows: int = ROWS) -> Iterator[Tensor]:
    """Return features [n, d] in float64 blocks of at most `rows` rows."""
    return (block.double() for block in features.detach().split(rows))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return all squared Euclidean distances [len(a), len(b)] of float64 rows by one matrix product.

    Off by about 1e-16 of the largest squared norm: move both near the origin first.
    """
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * (a @ b.T)).clamp_(min=0)
