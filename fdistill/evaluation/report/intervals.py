"""How far a row's numbers move from one draw of the samples to the next: 95% intervals from pairs of random halves.

Both sets are divided into random halves, again and again. The halves A and B of one split are as good as two draws of
n / 2, and the standard deviation of a number of all n is the root mean square of (number of A - number of B) / 2: half
samples, as McCarthy (1969, "Pseudo-replication: half samples") uses them. It is a bootstrap without repeated samples.
A bootstrap with replacement repeats a third of them: copies lie at distance 0, shrink every ball that reaches to a k-th
neighbour, and look like a crowd. Resampling who is inside a ball with the balls held fixed repeats nobody but forgets
that the balls move: its deviations are half of the true ones for density, for crowding, and for recall in the plane.

Only differences are taken from the halves, never values: Frechet distance, coverage and Vendi score depend on n, the
first by about d / n, and all rows are compared at equal n. So an interval says where the number would lie for other
samples, not where it would end for infinitely many.
"""

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.evaluation.collapse_alarm import half_splits
from fdistill.evaluation.metrics import tail_indices
from fdistill.evaluation.report.rows import LEAST_SAMPLES, compare
from fdistill.evaluation.samples import Samples

STANDARD_ERRORS = 1.96  # on each side, for 95%
SPLITS = 30  # a standard deviation that is right to 13%
FEWER = 10  # to 22%, where one split takes long
MANY_FEATURES = 256
MANY_SAMPLES = 2000
MOST_IN_HALF = 2500
"""Samples of a half: time grows with their square. Standard deviations of n > 5,000 samples are those of 2,500 times
sqrt(2,500 / n), as they are of n / 2 times sqrt(1 / 2) below."""
LEAST_FOR_INTERVALS = 2 * LEAST_SAMPLES
SHARES = ("precision", "recall", "coverage", "accuracy", "memorized_fraction")
"""Shares of n samples: their intervals are at least the binomial ones."""
AT_MOST_ONE = (*SHARES, "mode_coverage", "class_entropy")
SIGNED = ("kernel_distance", "in_batch_similarity", "tid", "anchored_tid")


def intervals(
    row: Mapping[str, float | None],
    generated: Samples,
    reference: Samples,
    num_modes: int,
    splits: int | None,
    seed: int,
) -> dict[str, list[float]]:
    """Return 95% intervals [low, high] around the numbers of a row, by name, within the range of each number.

    They are as wide as one draw scatters, around a number that may be the mean of several. The kernel distance and the
    paired distance have standard errors of their own; extremes (the tail diagnostics) and local coverage have no
    interval. Distances of equal laws scatter less than their intervals say, by a factor of about 1.4, as under every
    jackknife.

    Args:
        row: of `average_rows`.
        generated: samples of one draw, n >= 12.
        reference: n real samples.
        num_modes: as `measure` takes it.
        splits: how many; 0 for no intervals, None for 30, or 10 above 256 features or 2,000 samples.
        seed: of the halves.

    Raises:
        ValueError: for a negative number of splits, or too few samples.
    """
    check_splits(splits)
    if splits is None:
        splits = usual_splits(generated.features)
    if splits == 0:
        return {}
    errors = standard_errors(generated, reference, num_modes, splits, seed)
    errors |= {name: row.get(f"{name}_error") for name in ("kernel_distance", "paired_distance")}
    errors["local_coverage"] = None  # among halves 30 neighbours lie farther away, and their share scatters less
    errors["memorized_fraction"] = 0.0  # new samples beside fixed training ones: the binomial alone
    return {
        name: _interval(name, value, error, len(generated))
        for name, error in errors.items()
        if error is not None and (value := row.get(name)) is not None
    }


def check_splits(splits: int | None) -> None:
    """Raise ValueError for a negative number of splits."""
    if splits is not None and splits < 0:
        raise ValueError(f"intervals come from splits into halves: expected 0 or more, got {splits}; 30 are usual")


def usual_splits(features: Tensor) -> int:
    """Splits of features [n, d] where nobody asked for another number."""
    n, d = features.shape
    return SPLITS if d <= MANY_FEATURES and n <= MANY_SAMPLES else FEWER


def standard_errors(
    generated: Samples, reference: Samples, num_modes: int, splits: int, seed: int
) -> dict[str, float | None]:
    """Return the standard deviation of every number of `compare` over draws of n samples; None where one has none.

    Samples that were asked for the classes of the real ones, row by row, are divided as these are: fresh draws of both
    have equal classes too. Crowding is counted within one radius throughout, that of the whole reference (of as many
    samples as both halves have together).

    Args:
        generated, reference: n >= 12 each.
        num_modes: as `compare` takes it.
        splits: >= 1.
        seed: of the halves.

    Raises:
        ValueError: for too few samples, or different numbers of them.
    """
    n = len(generated)
    if n < LEAST_FOR_INTERVALS:
        raise ValueError(
            f"halves hold {LEAST_SAMPLES} samples: expected n >= {LEAST_FOR_INTERVALS}, got {n}; draw more"
        )
    size = min(n // 2, MOST_IN_HALF)
    scale = 1.0 if size == n // 2 else math.sqrt(2 * size / n)
    both = n if size == n // 2 else 2 * size
    radius = tail_indices(generated.features[:both], reference.features[:both]).eps
    ours = half_splits(n, splits, generator_for(seed, 0), size)
    same = _same_classes(generated, reference)
    theirs = ours if same else half_splits(n, splits, generator_for(seed, 1), size)
    pairs = [
        [compare(generated[i], reference[j], num_modes, radius) for i, j in zip(mine, real, strict=True)]
        for mine, real in zip(ours, theirs, strict=True)
    ]
    columns = {name: [(a[name], b[name]) for a, b in pairs] for name in pairs[0][0]}
    return {
        name: None if None in sum(column, ()) else scale * _half_difference(cast("list[tuple[float, float]]", column))
        for name, column in columns.items()
    }


def share_interval(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share in [0, 1] of n samples; it has a width at 0 and 1 too (Wilson 1927)."""
    z = STANDARD_ERRORS  # scipy.stats.binomtest takes counts: a share here may be the mean of several draws
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _same_classes(generated: Samples, reference: Samples) -> bool:
    """Whether the i-th generated sample was asked to be what the i-th real one is."""
    if generated.wanted is None or reference.wanted is None:
        return False
    return torch.equal(generated.wanted, reference.wanted)


def _half_difference(pairs: list[tuple[float, float]]) -> float:
    """Return the root mean square of half the difference of pairs."""
    first, second = torch.tensor(pairs, dtype=torch.float64).T
    return float(((first - second) / 2).square().mean().sqrt())


def _interval(name: str, value: float, error: float, n: int) -> list[float]:
    low, high = value - STANDARD_ERRORS * error, value + STANDARD_ERRORS * error
    if name in SHARES:
        least = share_interval(value, n)
        low, high = min(low, least[0]), max(high, least[1])
    if name not in SIGNED:
        low = max(low, 0.0)
    return [low, min(high, 1.0) if name in AT_MOST_ONE else high]
