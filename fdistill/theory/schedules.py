"""Numbers that change over the student's updates: ramps that start and end exactly, and steps."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from fdistill.core.spec import Described


class Schedule(Described, ABC):
    """A number for every update of the student, counted from 0."""

    @abstractmethod
    def at(self, update: int) -> float:
        """The value while the student makes this update; constant before the first change and after the last."""


def value_at(value: "float | Schedule", update: int) -> float:
    """A number is itself at every update."""
    return value.at(update) if isinstance(value, Schedule) else float(value)


class _Ramp(Schedule):
    def __init__(self, start: float, end: float, updates: int, delay: int = 0) -> None:
        """Args:
        start: value until update `delay`, finite.
        end: value from update `delay` + `updates` on, finite.
        updates: how many updates the change takes, >= 1.
        delay: how many updates pass before it begins, >= 0.
        """
        name = type(self).__name__
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ValueError(f"{name} goes between finite numbers: got {start} and {end}")
        if updates < 1 or delay < 0:
            raise ValueError(f"{name} takes updates >= 1 after delay >= 0: got updates {updates}, delay {delay}")
        self.start, self.end, self.updates, self.delay = start, end, updates, delay

    def at(self, update: int) -> float:
        share = (update - self.delay) / self.updates
        if share <= 0:
            return float(self.start)
        if share >= 1:
            return float(self.end)
        low, high = sorted((self.start, self.end))
        return min(max(self._between(share), low), high)

    @abstractmethod
    def _between(self, share: float) -> float:
        """The value after a share in (0, 1) of the change."""


class Linear(_Ramp):
    """From start to end in equal steps."""

    def _between(self, share: float) -> float:
        return self.start + (self.end - self.start) * share


class Cosine(_Ramp):
    """From start to end along half a cosine: slow, fast, slow."""

    def _between(self, share: float) -> float:
        return self.start + (self.end - self.start) * math.sin(math.pi * share / 2) ** 2


class Exponential(_Ramp):
    """From start to end by equal factors; both positive or both negative."""

    def __init__(self, start: float, end: float, updates: int, delay: int = 0) -> None:
        """Args:
        start: value until update `delay`, not 0.
        end: value from update `delay` + `updates` on, of the sign of `start`.
        updates: how many updates the change takes, >= 1.
        delay: how many updates pass before it begins, >= 0.
        """
        super().__init__(start, end, updates, delay)
        if start == 0 or end == 0 or (start > 0) != (end > 0):
            raise ValueError(f"Exponential goes between two numbers of one sign, neither 0: got {start} and {end}")

    def _between(self, share: float) -> float:
        logarithm = (1 - share) * math.log(abs(self.start)) + share * math.log(abs(self.end))
        return math.copysign(math.exp(logarithm), self.start)


class Steps(Schedule):
    """values[0] until the first boundary, values[i] from boundaries[i - 1] on."""

    def __init__(self, values: Sequence[float], boundaries: Sequence[int]) -> None:
        """Args:
        values: finite, one more than there are boundaries.
        boundaries: the updates at which the next value begins, >= 1 and increasing.
        """
        values, boundaries = list(values), list(boundaries)
        if len(values) != len(boundaries) + 1:
            raise ValueError(
                f"Steps has one value more than boundaries: got {len(values)} values, {len(boundaries)} boundaries"
            )
        if not all(map(math.isfinite, values)):
            raise ValueError(f"Steps goes between finite numbers: got {values}")
        if any(before >= after for before, after in pairwise([0, *boundaries])):
            raise ValueError(f"boundaries of Steps are updates >= 1 in increasing order: got {boundaries}")
        self.values, self.boundaries = values, boundaries

    def at(self, update: int) -> float:
        return float(self.values[bisect_right(self.boundaries, update)])
