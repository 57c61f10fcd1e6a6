"""Features in float64 a block of rows at a time, so that no copy of all of them and no matrix of all pairs is held."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fdistill.evaluation.metrics.checks import check_tensor, checked_features

ROWS = 1024
"""Rows of a block: 16 MiB of 2,048 features, and a matrix product long enough to be fast."""


def check_features(name: str, features: Tensor, minimum: int = 1) -> None:
    """Raise ValueError as `checked_features` does, for features [n, d], without its copy in float64."""
    check_tensor(name, features)
    sound = features.ndim == 2 and features.shape[1] > 0 and len(features) >= minimum
    # the extremes carry a NaN along, and need no mask of the size of the features
    if not sound or not torch.stack(features.detach().aminmax()).isfinite().all():
        checked_features(name, features, minimum)


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
