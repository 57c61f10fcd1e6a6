"""Coverage of the real data cell by cell, for modes that nobody has labelled (bins as in NDB, arXiv 1805.12462)."""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from fdistill.metrics.base import RowMetric
from fdistill.metrics.checks import checked_pair

PER_BIN = 20  # real samples in a bin on average, so that chance does not empty one
MOST_BINS = 50
MIN_SHARE = 0.25  # of the bin's own weight, that counts as covered


class BinsCovered(NamedTuple):
    """Float64 scalars: share of the bins that are covered, in [0, 1], and the total variation of the bins' weights."""

    bin_coverage: Tensor
    bin_distance: Tensor


def bin_coverage(generated: Tensor, reference: Tensor) -> BinsCovered:
    """Divide the reference into cells by k-means, and see which of them the generated samples reach.

    A bin is covered when it holds at least `MIN_SHARE` of the share that it holds of the reference. There are
    m / `PER_BIN` bins, at least 2 and at most `MOST_BINS`, from a fixed seed. `bin_distance` is
    sum |p_generated - p_reference| / 2, in [0, 1); sampling alone makes it about sqrt(bins / (pi n)).

    Args:
        generated: features [n, d], n >= 2.
        reference: features [m, d], m >= 2.

    Raises:
        ValueError: for a wrong shape, too few samples, or a NaN.
    """
    generated, reference = checked_pair(generated, reference)
    distinct = len(reference.unique(dim=0))
    bins = min(max(len(reference) // PER_BIN, 2), MOST_BINS, distinct)
    rows = reference.cpu().numpy()
    rows = rows[np.lexsort(rows.T)]  # k-means begins at rows by their number: one order for one set
    cells = KMeans(bins, n_init=1, random_state=0).fit(rows)
    real = _shares(torch.from_numpy(cells.labels_), bins)
    made = _shares(torch.from_numpy(cells.predict(generated.cpu().numpy())), bins)
    covered = (made >= MIN_SHARE * real).double().mean()
    return BinsCovered(*(value.to(generated.device) for value in (covered, (made - real).abs().sum() / 2)))


class BinCoverage(RowMetric):
    """`bin_coverage` of all samples, of all ranks: its two numbers by name."""

    def measure(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        self.need("generated", len(generated), 2)
        self.need("real", len(real), 2)
        return bin_coverage(generated, real)._asdict()


def _shares(labels: Tensor, bins: int) -> Tensor:
    return torch.bincount(labels.long(), minlength=bins).double() / len(labels)
