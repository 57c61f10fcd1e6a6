"""How far a row's numbers move from one draw of the samples to the next: 95% intervals from random halves.

A draw that was not made is imitated by a random half of the generated samples beside a random half of the real ones:
the bootstrap whose weights are 0 and 2 (Praestgaard and Wellner 1993; as a jackknife, Shao and Wu 1989). A smooth
statistic scatters over halves as it does over fresh draws of all n. Unlike samples drawn with replacement, halves hold
no sample twice: copies lie at distance 0, shrink every ball that reaches to a k-th neighbour, and look like a crowd.
Resampling who is "inside a ball" with the balls held fixed has no copies either, but forgets that the balls move too:
its standard deviations are half of the true ones for density, for crowding, and for recall in the plane. Samples that
were asked for the classes of the real ones are halved together with them, for a fresh draw has equal classes too.

Only the scatter is taken from the halves, never their values: Frechet distance, coverage and Vendi score depend on n,
the first by about d / n, and all rows are compared at equal n. So an interval says where the number would lie for other
samples, not where it would end for infinitely many.
"""

import math
from collections.abc import Mapping

import torch

from fdistill.random_streams import generator_for
from fdistill.report.rows import LEAST_SAMPLES, Samples, compare

STANDARD_ERRORS = 1.96  # on each side, for 95%
REPLICATES = 50  # a standard deviation that is right to 10%
FEWER = 20  # to 16%, where the eigenvalues of a covariance take seconds
MANY_FEATURES = 256
LEAST_FOR_INTERVALS = 2 * LEAST_SAMPLES
SHARES = ("precision", "recall", "coverage", "accuracy", "memorized_fraction")
"""Shares of n samples: their intervals are at least the binomial ones."""
AT_MOST_ONE = (*SHARES, "mode_coverage", "bin_coverage", "class_entropy")
SIGNED = ("kernel_distance", "in_batch_similarity", "tid", "anchored_tid")


def intervals(
    row: Mapping[str, float | None],
    generated: Samples,
    reference: Samples,
    num_modes: int,
    replicates: int | None,
    seed: int,
) -> dict[str, list[float]]:
    """Return 95% intervals [low, high] around the numbers of a row, by name, within the range of each number.

    They are as wide as one draw scatters, around a number that may be the mean of several. The kernel distance and the
    paired distance have standard errors of their own; extremes (the tail diagnostics) have no interval. Where real and
    generated law are equal, distances scatter less than these intervals say, by a factor of about 1.5.

    Args:
        row: of `average_rows`.
        generated: samples of one draw, n >= 12.
        reference: the real samples.
        num_modes: as `measure` takes it.
        replicates: how many pairs of halves; 0 for no intervals, None for 50, or 20 above 256 features.
        seed: of the halves.

    Raises:
        ValueError: for a negative or a single replicate, or too few samples.
    """
    if replicates is None:
        replicates = REPLICATES if generated.features.shape[1] <= MANY_FEATURES else FEWER
    if replicates < 0 or replicates == 1:
        raise ValueError(f"intervals need a scatter: expected 0 or at least 2 replicates, got {replicates}")
    if replicates == 0:
        return {}
    spread = half_sample_spread(generated, reference, num_modes, replicates, seed)
    spread |= {name: row.get(f"{name}_error") for name in ("kernel_distance", "paired_distance")}
    spread["memorized_fraction"] = 0.0  # of new samples beside fixed training ones: the binomial alone
    return {
        name: _interval(name, row[name], error, len(generated))
        for name, error in spread.items()
        if error is not None and row.get(name) is not None
    }


def half_sample_spread(
    generated: Samples, reference: Samples, num_modes: int, replicates: int, seed: int
) -> dict[str, float | None]:
    """Return the standard deviation of every number of `compare` over draws of n samples; None where one has none.

    Args:
        generated, reference: n >= 12 each.
        num_modes: as `compare` takes it.
        replicates: >= 2.
        seed: of the halves.
    """
    n = min(len(generated), len(reference))
    if n < LEAST_FOR_INTERVALS:
        raise ValueError(f"halves hold {LEAST_SAMPLES} samples: expected n >= {LEAST_FOR_INTERVALS}, got {n}; draw more")
    paired, found = _same_classes(generated, reference), []
    for replicate in range(replicates):
        generator = generator_for(seed, replicate)
        ours, theirs = (torch.randperm(n, generator=generator)[: n // 2] for _ in range(2))
        found.append(compare(generated[ours], reference[ours if paired else theirs], num_modes))
    columns = {name: [values[name] for values in found] for name in found[0]}
    return {name: None if None in column else _deviation(column) for name, column in columns.items()}


def share_interval(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share in [0, 1] of n samples; it has a width at 0 and 1 too (Wilson 1927)."""
    z = STANDARD_ERRORS
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def _same_classes(generated: Samples, reference: Samples) -> bool:
    """Whether the i-th generated sample was asked to be what the i-th real one is."""
    known = generated.wanted is not None and reference.wanted is not None
    return known and torch.equal(generated.wanted, reference.wanted)


def _interval(name: str, value: float, error: float, n: int) -> list[float]:
    low, high = value - STANDARD_ERRORS * error, value + STANDARD_ERRORS * error
    if name in SHARES:
        least = share_interval(value, n)
        low, high = min(low, least[0]), max(high, least[1])
    if name not in SIGNED:
        low = max(low, 0.0)
    return [low, min(high, 1.0) if name in AT_MOST_ONE else high]


def _deviation(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std())
