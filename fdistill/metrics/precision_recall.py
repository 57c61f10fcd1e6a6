"""Precision and recall of generated samples by nearest neighbours (arXiv 1904.06991)."""

from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.metrics.checks import checked_pair


class PrecisionRecall(NamedTuple):
    """Two float64 scalars in [0, 1]; 1 is best."""

    precision: Tensor  # share of generated samples inside the reference's manifold: quality
    recall: Tensor  # share of reference samples inside the generated manifold: diversity


def precision_recall(generated: Tensor, reference: Tensor, k: int = 3, chunk: int = 1024) -> PrecisionRecall:
    """Return how much of each set lies in the other's manifold.

    The manifold of a set is the union of the closed balls around its points that reach to their k-th neighbour,
    the point itself not counted.

    Args:
        generated: features [n, d], n > k.
        reference: features [m, d], m > k.
        k: which neighbour sets the radius, >= 1.
        chunk: rows of the distance matrix held at a time; memory is chunk * max(n, m) numbers.

    Raises:
        ValueError: for a wrong shape, too few samples, a NaN, or k or chunk below 1.
    """
    for name, value in (("k", k), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} counts from 1: expected >= 1, got {value}")
    generated, reference = checked_pair(generated, reference, minimum=k + 1)
    return PrecisionRecall(
        precision=_share_inside(generated, reference, k, chunk),
        recall=_share_inside(reference, generated, k, chunk),
    )


def _share_inside(points: Tensor, manifold: Tensor, k: int, chunk: int) -> Tensor:
    """Return the share of `points` [n, d] inside the manifold of `manifold` [m, d]."""
    # the distance of a point to itself is the first of the sorted k + 1
    radius = torch.cat([_distances(rows, manifold).kthvalue(k + 1, dim=1).values for rows in manifold.split(chunk)])
    inside = torch.cat([(_distances(rows, manifold) <= radius).any(dim=1) for rows in points.split(chunk)])
    return inside.double().mean()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return all Euclidean distances [len(a), len(b)], exactly 0 between equal points.

    The faster form by a matrix product is off by about 1e-8, which breaks `<=` where points repeat.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
