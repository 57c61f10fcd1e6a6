"""The collapse alarm: bands from halves of the real data, and a rule that reads a run's metrics against them.

Two random halves of the real samples are the best pair of "generated" and "real" there is. What a metric says of such
pairs, and a tolerance for students that are healthy but not perfect, make its band. A metric that is outside its band
in several evaluations in a row is a collapse.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SPREADS = 4.0  # standard deviations of the null that chance is allowed


@dataclass(frozen=True)
class Watch:
    """How one metric tells of collapse.

    Attributes:
        falls: whether it falls under collapse; otherwise it rises.
        tolerance: how far from the null a healthy student may be: a share of the null's median where the metric falls,
            in its own units where it rises.
        says: what it means, for the reason.
    """

    falls: bool
    tolerance: float
    says: str


WATCHED = {
    "recall": Watch(True, 0.25, "real samples that the student no longer makes"),
    "vendi_ratio": Watch(True, 0.15, "fewer effectively different samples than real data has"),
    "anchored_tid": Watch(False, 1.0, "samples crowd together more than real ones do"),
    "local_coverage": Watch(True, 0.005, "regions of the real data that the student no longer reaches"),
    "mode_coverage": Watch(True, 0.05, "whole modes or classes are missing"),
}


@dataclass(frozen=True)
class Band:
    """The values of a metric that are no sign of collapse: at least `low`, at most `high`."""

    low: float
    high: float

    def margin(self, value: float) -> float:
        """How far inside the band a value is, in the metric's units; negative outside."""
        return min(value - self.low, self.high - value)


def band(null: Tensor, watch: Watch, teacher: float | None = None) -> Band:
    """The band of a metric whose values on pairs of real halves are `null` [S], S >= 2.

    Its edge lies `SPREADS` standard deviations and the tolerance away from the null's median, on the side of collapse.
    No student is asked for more than its teacher has: where the `teacher` itself would lie outside, the edge is as far
    from it instead.
    """
    if len(null) < 2 or not null.isfinite().all():
        raise ValueError(
            f"a band needs at least 2 finite values of pairs of real halves: got {null.tolist()}; use more real data"
        )
    spread = float(null.double().std())

    def around(middle: float) -> Band:
        if watch.falls:
            return Band(middle * (1 - watch.tolerance) - SPREADS * spread, math.inf)
        return Band(-math.inf, middle + watch.tolerance + SPREADS * spread)

    found = around(float(null.double().median()))
    return around(teacher) if teacher is not None and found.margin(teacher) < 0 else found


@dataclass
class Verdict:
    """What one evaluation says.

    Attributes:
        alarm: whether this is a collapse now.
        margins: by metric, how far inside its band it is; negative outside.
        reason: in words; empty without an alarm.
    """

    alarm: bool
    margins: dict[str, float]
    reason: str = ""


@dataclass
class CollapseAlarm:
    """Declares a collapse when one metric is outside its band in `patience` evaluations in a row.

    Attributes:
        bands: by metric; those that an evaluation lacks are passed over.
        patience: evaluations in a row, >= 1.
        grace: student updates before which nothing is declared unless the student has once been inside all bands: at
            the start of a run it has not learned anything yet.
    """

    bands: Mapping[str, Band]
    patience: int = 2
    grace: int = 0
    armed: bool = False
    outside: dict[str, list[int]] = field(default_factory=dict)  # name to [evaluations in a row, update of the first]

    def update(self, values: Mapping[str, float], updates: int, missing: Sequence[int] = ()) -> Verdict:
        """Judge the metrics of the student after `updates` updates; call once for each evaluation, in order.

        Args:
            values: by name; NaN counts as outside.
            updates: of the student so far.
            missing: modes or classes without samples, to be named in the reason.
        """
        margins = {name: edges.margin(values[name]) for name, edges in self.bands.items() if name in values}
        now = [name for name, margin in margins.items() if not margin >= 0]
        self.armed = self.armed or not now or updates >= self.grace
        if not self.armed:
            return Verdict(False, margins)
        before = {name: self.outside.get(name, [0, updates]) for name in now}
        self.outside = {name: [times + 1, first] for name, (times, first) in before.items()}
        lasting = [name for name, (times, _) in self.outside.items() if times >= self.patience]
        return Verdict(bool(lasting), margins, self._reason(lasting, values, missing) if lasting else "")

    def _reason(self, names: list[str], values: Mapping[str, float], missing: Sequence[int]) -> str:
        parts = []
        for name in names:
            edges, says = self.bands[name], WATCHED[name].says if name in WATCHED else "outside its band"
            side = f"below {edges.low:.3g}" if values[name] < edges.low else f"above {edges.high:.3g}"
            parts.append(f"{name} {values[name]:.3g} is {side} ({says})")
        first = min(self.outside[name][1] for name in names)
        named = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        return "; ".join(parts) + (f"; without samples: {named}" if named else "") + f"; since update {first}"

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"armed": self.armed, "outside": {name: list(seen) for name, seen in self.outside.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.armed, self.outside = state["armed"], {name: list(seen) for name, seen in state["outside"].items()}


def bands(
    null: Mapping[str, Tensor], watched: Mapping[str, Watch] = WATCHED, teacher: Mapping[str, float] | None = None
) -> dict[str, Band]:
    """The band of every watched metric that the null has values [S] of; `teacher` has the teacher's, where known."""
    known = teacher or {}
    return {name: band(null[name], watch, known.get(name)) for name, watch in watched.items() if name in null}


def half_splits(
    n: int, num_splits: int, generator: torch.Generator, most: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """`num_splits` random pairs of disjoint halves of the indices 0 ... n - 1, each of n // 2 but at most `most`."""
    if n < 4 or num_splits < 1:
        raise ValueError(f"half-splits need n >= 4 samples and at least one split: got {n} and {num_splits}")
    orders, size = [torch.randperm(n, generator=generator) for _ in range(num_splits)], min(n // 2, most or n)
    return [(order[:size], order[size : 2 * size]) for order in orders]
