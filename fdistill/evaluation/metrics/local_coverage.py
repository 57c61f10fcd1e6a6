"""Coverage of the real data neighbourhood by neighbourhood, for modes that nobody has labelled.

Of the nearest neighbours of a real sample, in the union of both sets, as many should be generated as in the union
itself (the nearest-neighbour two-sample test of Schilling 1986, read one sample at a time).
"""

import torch
from torch import Tensor

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import check_pair
from fdistill.evaluation.metrics.neighbours import nearest

NEIGHBOURS = 30
"""Of a real sample. At equal n, 7 of 30 or fewer generated ones are chance once in 400."""
DESERTED = 0.5
"""Share of the expected generated neighbours, at or below which a real sample is deserted."""


def is_covered(generated: Tensor, reference: Tensor) -> Tensor:
    """Return whether each reference sample has generated neighbours, bool [m].

    Those with at most half as many generated ones among their 30 nearest neighbours, itself not counted, as the union
    has, are deserted. Neighbours at equal distance count all.

    Args:
        generated: features [n, d], n >= 1.
        reference: features [m, d], m >= 2.

    Raises:
        ValueError: for a wrong shape, too few samples, or a NaN.
    """
    check_pair(generated, reference, minimum=1)
    n, m = len(generated), len(reference)
    if m < 2:
        raise ValueError(f"a neighbourhood needs neighbours: expected at least 2 real samples, got {m}; give more")
    k = min(NEIGHBOURS, n + m - 1)
    real = nearest(reference, reference, min(k + 1, m)).distances[:, 1:]  # the first is the sample itself, or a copy
    made = nearest(reference, generated, min(k, n)).distances
    radius = torch.cat([real, made], dim=1).kthvalue(k, dim=1, keepdim=True).values
    of_real, of_made = ((side <= radius).sum(1).double() for side in (real, made))
    return of_made / (of_real + of_made) > DESERTED * n / (n + m - 1)


def local_coverage(generated: Tensor, reference: Tensor) -> Tensor:
    """Return the share of `reference` that `is_covered`, a float64 scalar in [0, 1]; about .997 for equal laws.

    It falls by the weight of what was dropped, without labels, and sees neither shrinkage nor repetition that leaves
    every neighbourhood its share.
    """
    return is_covered(generated, reference).double().mean()


class LocalCoverage(FeatureMetric):
    """`local_coverage` of all samples, of all ranks."""

    def measure(self, generated: Tensor, real: Tensor) -> Tensor:
        return local_coverage(generated, real)
