"""Choosing the length of an average by a metric: by one half of the held-out data, and reported on the other.

The best of many values of one finite sample is better than it deserves. So held-out samples and latents are in two
disjoint parts: the first chooses, and what the second says of the chosen length is unbiased. All lengths, and the EMA
they are compared with, get the same latents and classes, so that their differences are less noisy than they are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch

from fdistill.core.random import fold_seed, generator_for
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.comparison import Comparison
from fdistill.evaluation.evaluate import check_fits
from fdistill.evaluation.features import FeatureExtractor
from fdistill.evaluation.report.rows import LEAST_SAMPLES, average_rows, measure
from fdistill.evaluation.report.table import METRICS, PUBLISHED
from fdistill.evaluation.sources import Source

PARTS = ("choosing", "reporting")
MOST = 5000  # samples, where nobody asked for another number

Rows = dict[str, list[dict[str, Any]]]
"""All metrics of each draw, for each of the two parts."""


class TwoHalves(Comparison):
    """The real side: two disjoint parts of the held-out split with n samples each, and latents for each.

    Attributes:
        n: samples of each row.
    """

    def __init__(
        self, data: GenerativeDataModule, extractor: FeatureExtractor, n: int | None, seed: int, repeats: int
    ) -> None:
        """Args:
        data: real samples.
        extractor: prepared here, on the training split.
        n: of each part; half of the held-out split, but at most 5,000, where not given.
        seed: of the halves, the latents and the extractor.
        repeats: draws from each part's latents, >= 1.

        Raises:
            ValueError: for a number out of range.
        """
        held_out = data.held_out_samples
        half = len(held_out) // 2
        self.n = min(half, MOST) if n is None else n
        if not LEAST_SAMPLES <= self.n <= half:
            raise ValueError(
                f"one half of the {len(held_out)} held-out samples chooses and the other reports, n of each: "
                f"expected {LEAST_SAMPLES} <= n <= {half}, got {self.n}; give another n, or hold more data out"
            )
        if repeats < 1:
            raise ValueError(f"repeats is at least 1: got {repeats}")
        super().__init__(data, extractor, seed)
        self.repeats = repeats
        order = torch.randperm(len(held_out), generator=generator_for(seed))
        parts = (order[: self.n], order[half : half + self.n])
        self._labels = [held_out.labels[part] for part in parts]
        self._references = [self.read("reference", *held_out.rows(part)[:2]) for part in parts]

    def rows(self, name: str, source: Source) -> Rows:
        """What a source measures in each part, draw by draw; the same latents for every source.

        Raises:
            ValueError: where it does not fit the data, or its samples are broken.
        """
        check_fits(name, source, self.data)
        found: Rows = {}
        for i, part in enumerate(PARTS):
            found[part] = []
            for repeat in range(self.repeats):
                seed = fold_seed(self.seed, i, repeat) % 2**32
                labels = source.labels(self.n, seed, self._labels[i])
                samples = self.read(name, source.draw(self.n, seed, labels), labels)
                found[part].append(measure(samples, self._references[i], self.data.num_modes))
        return found


@dataclass(frozen=True)
class LengthChoice:
    """The best length by a metric, beside the run's own EMA.

    Attributes:
        metric: name of a metric of reports.
        lengths: rows by length.
        ema: rows of the run's EMA.
    """

    metric: str
    lengths: Mapping[float, Rows]
    ema: Rows

    @property
    def best(self) -> float:
        """The length whose mean over the choosing draws is best."""
        sign = better(self.metric)
        return min(self.lengths, key=lambda length: -sign * mean(self.values(self.lengths[length], "choosing")))

    def values(self, rows: Rows, part: str) -> list[float]:
        """The metric of every draw.

        Raises:
            ValueError: where it has no meaning for this data.
        """
        found = [row[self.metric] for row in rows[part]]
        if None in found:
            raise ValueError(f"{self.metric} has no value for these samples: choose by another metric")
        return found

    def against_ema(self, rows: Rows) -> tuple[float, float | None]:
        """Metric less that of the EMA in the reporting part: mean over the draws, and its standard error.

        The error is of the latents alone: None of one draw.
        """
        pairs = zip(self.values(rows, "reporting"), self.values(self.ema, "reporting"), strict=True)
        differences = [mine - its for mine, its in pairs]
        error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
        return mean(differences), error

    def report(self) -> dict[str, Any]:
        """Plain values: metric, side, best length, and a row of all metrics for the EMA and for each length."""
        return {
            "metric": self.metric,
            "better": "higher" if better(self.metric) > 0 else "lower",
            "best": self.best,
            "ema": {part: average_rows(self.ema[part]) for part in PARTS},
            "lengths": [self._row(length, rows) for length, rows in sorted(self.lengths.items())],
        }

    def _row(self, length: float, rows: Rows) -> dict[str, Any]:
        difference, error = self.against_ema(rows)
        parts = {part: average_rows(rows[part]) for part in PARTS}
        return {"length": length, **parts, "against_ema": difference, "against_ema_error": error}


def better(metric: str) -> int:
    """1 where a metric is better the higher it is, -1 the lower.

    Raises:
        ValueError: for a metric that has no such side, or that reports of this kind do not hold.
    """
    sides = {name: {"↓": -1, "↑": 1}.get(entry.better[0]) for name, entry in METRICS.items()}
    others = ("paired_distance", "memorized_fraction", *PUBLISHED)  # the last are measured by evaluate alone
    known = {name: side for name, side in sides.items() if side and name not in others}
    if metric not in known:
        raise ValueError(
            f"a length is chosen by a metric with a better side: expected one of {sorted(known)}, got {metric!r}"
        )
    return known[metric]
