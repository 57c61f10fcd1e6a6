"""A power law plus a constant, fitted to curves of runs: L = E + sum_i A_i (x_i / m_i)^-a_i, or why there is none.

The form and the fit are those of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3 and appendix D.2): E, A_i and a_i
minimise a Huber loss of log residuals, from several starts. x_i is divided by m_i, the geometric mean of what was
measured, so that A_i is a part of L in the middle of the data, which correlates less with a_i.

Intervals are by the wild cluster bootstrap (Cameron, Gelbach and Miller 2008): the points of a run stray together, so
that runs, not points, are independent, and the log residuals of each whole run keep or change their sign at random.
They are made larger for the degrees of freedom between runs, by Student's quantile over the normal one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Of all intervals, two-sided."""
EXPONENTS = (0.02, 4.0)
"""Within which a_i is looked for; smaller ones are no trend, larger ones a step."""
_HUBER = 0.1  # log residuals beyond it count linearly
_LEAST_PART = 1e-3  # of the least value: constants and parts below it are none
_LEAST_VALUES, _LEAST_RUNS = 3, 4
_DRAWS = 50  # of a run's noise for each replica
_STARTS = ((0.2, 0.7, 2.0), (0.05, 0.5, 0.95))  # a_i, and E over the least value

Floats = NDArray[np.float64]


class CannotSay(ValueError):
    """These points determine no law; the message is one line that says why."""


class Interval(NamedTuple):
    """An estimate between its bounds."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether it lies between the bounds."""
        return bool(self.low <= value <= self.high)


@dataclass(frozen=True)
class Points:
    """What was measured.

    Attributes:
        inputs: x_i by name, each [n], positive.
        values: L [n], positive.
        runs: number of the run that each point is of, [n].
    """

    inputs: Mapping[str, Floats]
    values: Floats
    runs: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name, column in {"the values": self.values, **self.inputs}.items():
            if len(column) != len(self.runs):
                raise ValueError(
                    f"points have one run, input and value each: expected {len(self.runs)} of {name}, got {len(column)}"
                )
            if not (np.isfinite(column).all() and (column > 0).all()):
                raise ValueError(
                    f"a power law is fitted to positive finite numbers: got {column.min():.4g} to "
                    f"{column.max():.4g} in {name}"
                )

    def without(self, name: str) -> "Points":
        """The same points with one input fewer."""
        return Points({other: x for other, x in self.inputs.items() if other != name}, self.values, self.runs)

    def clusters(self) -> tuple[int, NDArray[np.int64]]:
        """How many runs, and the place of each point's run among them [n]."""
        found, place = np.unique(self.runs, return_inverse=True)
        return len(found), place


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law.

    Attributes:
        middle: m_i by name.
        ranges: least and largest x_i that were fitted.
        rows: log E, log A_1 .., a_1 .. of the fit, and below it of each replica, [1 + replicas, 1 + 2 k].
        scatter: standard deviation of log L of a point around the law, degrees of freedom accounted for.
        left_out: inputs that are not in it, with the reason.
    """

    middle: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    rows: Floats
    scatter: float
    left_out: Mapping[str, str]

    def parameters(self) -> dict[str, Interval]:
        """E, and A and a of each input by "A student", "a student"."""
        names = ["E", *(f"A {name}" for name in self.middle), *(f"a {name}" for name in self.middle)]
        columns = np.concatenate(
            [np.exp(self.rows[:, : 1 + len(self.middle)]), self.rows[:, 1 + len(self.middle) :]], 1
        )
        return {name: _interval(column[0], column[1:]) for name, column in zip(names, columns.T, strict=True)}

    def mean(self, at: Mapping[str, float]) -> Interval:
        """Of the mean over runs at these inputs, those that are left out ignored."""
        logs = self._logs(at)
        return Interval(*np.exp(_interval(logs[0], logs[1:])))

    def single_run(self, at: Mapping[str, float]) -> Interval:
        """Between which a new run lies: what is uncertain of the law, and how far one run strays from it."""
        logs = self._logs(at)
        noise = np.random.default_rng(0).normal(0.0, self.scatter, (len(logs) - 1, _DRAWS))
        return Interval(*np.exp(_interval(logs[0], (logs[1:, None] + noise).ravel())))

    def outside(self, at: Mapping[str, float]) -> list[str]:
        """In which inputs this would extrapolate, in words."""
        return [
            f"{name} {at[name]:,.6g} is not within {low:,.6g} to {high:,.6g}"
            for name, (low, high) in self.ranges.items()
            if not low * (1 - 1e-9) <= at[name] <= high * (1 + 1e-9)
        ]

    def _logs(self, at: Mapping[str, float]) -> Floats:
        ratios = np.log([[at[name] / middle] for name, middle in self.middle.items()])
        return np.array([_log_law(row, ratios)[0][0] for row in self.rows])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "middle": dict(self.middle),
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "scatter": self.scatter,
            "left_out": dict(self.left_out),
            "rows": [[round(float(number), 4) for number in row] for row in self.rows],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """What `to_json` wrote."""
        ranges = {name: (ends[0], ends[1]) for name, ends in found["ranges"].items()}
        return cls(found["middle"], ranges, np.array(found["rows"]), found["scatter"], found["left_out"])


def fit_power_law(points: Points, replicas: int = 200, seed: int = 0) -> PowerLaw:
    """Fit the inputs in which the values fall; those without a trend, or against it, are left out and named.

    Args:
        points: of at least 4 runs, at no fewer than 3 values of each input.
        replicas: of the bootstrap, >= 20.
        seed: of the replicas.

    Raises:
        CannotSay: where too little was measured, or no input has a trend.
        ValueError: for too few replicas.
    """
    if replicas < 20:
        raise ValueError(f"intervals need at least 20 replicas: got {replicas}")
    _check_enough(points)
    ranges = {name: (float(x.min()), float(x.max())) for name, x in points.inputs.items()}
    left_out = {}
    for name, slope in trends(points).items():
        if slope.high >= 0:
            kind = "rises with" if slope.low > 0 else "no trend with"
            left_out[name] = f"{kind} {name} (log-log slope {slope.value:.2g}, {slope.low:.2g} to {slope.high:.2g})"
            points = points.without(name)
    if not points.inputs:
        raise CannotSay(f"cannot say: {'; '.join(left_out.values())}")
    middle = {name: float(np.exp(np.log(x).mean())) for name, x in points.inputs.items()}
    ratios = np.log([x / middle[name] for name, x in points.inputs.items()])
    logs = np.log(points.values)
    fitted = _best(logs, ratios)
    residuals = logs - _log_law(fitted, ratios)[0]
    spare = len(logs) - len(fitted)
    scatter = math.sqrt(float(residuals @ residuals) / spare)
    number, place = points.clusters()
    freedom = number - _between(points)
    larger = math.sqrt(number / freedom) * _quantile(freedom) / _quantile(math.inf)
    rows = [fitted]
    for signs in np.random.default_rng(seed).choice([-1.0, 1.0], (replicas, number)):
        again = logs - residuals + larger * signs[place] * residuals
        rows.append(_descended(again, ratios, fitted)[0])
    return PowerLaw(middle, ranges, np.array(rows), scatter, left_out)


def trends(points: Points) -> dict[str, Interval]:
    """Slopes of log L over log x_i, all inputs together by least squares, with intervals over runs.

    Standard errors are those of the jackknife that leaves out a run at a time, which few runs of unequal weight need
    (CV3 of MacKinnon, Nielsen and Webb 2023), and quantiles are Student's.
    """
    design = np.stack([np.ones(len(points.values)), *(np.log(x) for x in points.inputs.values())], axis=1)
    logs = np.log(points.values)
    number, place = points.clusters()
    slopes = np.linalg.lstsq(design, logs)[0]
    others = [np.linalg.lstsq(design[place != run], logs[place != run])[0] for run in range(number)]
    variances = (number - 1) / number * ((np.array(others) - slopes) ** 2).sum(axis=0)
    errors = np.sqrt(variances) * _quantile(number - 1)
    found = zip(points.inputs, slopes[1:], errors[1:], strict=True)
    return {name: Interval(float(b), float(b - e), float(b + e)) for name, b, e in found}


def _quantile(freedom: float) -> float:
    """Of Student's t, the upper end of a two-sided interval."""
    from scipy.stats import t  # a second of imports, which reading a law does without

    return float(t.ppf((1 + LEVEL) / 2, freedom))


def _between(points: Points) -> int:
    """Unknowns that runs, not points, determine: the constant, and those of inputs that do not change within a run."""
    number, place = points.clusters()
    first = [int(np.argmax(place == run)) for run in range(number)]
    return 1 + 2 * sum(bool((x == x[first][place]).all()) for x in points.inputs.values())


def _check_enough(points: Points) -> None:
    for name, x in points.inputs.items():
        values = len(np.unique(x))
        if values < _LEAST_VALUES:
            raise CannotSay(
                f"cannot say: a power law plus a constant needs {_LEAST_VALUES} values of {name}, got {values}"
            )
    number, _ = points.clusters()
    unknowns = 1 + 2 * len(points.inputs)
    if number < max(_LEAST_RUNS, _between(points) + 1) or len(points.values) <= unknowns:
        raise CannotSay(
            f"cannot say: {len(points.inputs)} inputs make {unknowns} unknowns, and intervals are over runs: expected "
            f"more points, and at least {max(_LEAST_RUNS, _between(points) + 1)} runs, got {len(points.values)} points "
            f"of {number}"
        )
    if np.ptp(np.log(points.values)) < 1e-9:
        raise CannotSay(f"cannot say: all {len(points.values)} values are {points.values[0]:.4g}")


def _log_law(row: Floats, ratios: Floats) -> tuple[Floats, Floats]:
    """log L [n], and the shares [1 + k, n] of the constant and of each input in L; ratios are log x_i / m_i [k, n]."""
    k = len(ratios)
    parts = np.concatenate([np.full((1, ratios.shape[1]), row[0]), row[1 : 1 + k, None] - row[1 + k :, None] * ratios])
    largest = parts.max(axis=0)
    shares = np.exp(parts - largest)
    total = shares.sum(axis=0)
    return largest + np.log(total), shares / total


def _descended(logs: Floats, ratios: Floats, start: Floats) -> tuple[Floats, float]:
    """The parameters [1 + 2 k] that a start leads to, and their loss."""
    from scipy.optimize import least_squares

    k = len(ratios)

    def jacobian(row: Floats) -> Floats:
        shares = _log_law(row, ratios)[1]
        return np.concatenate([shares, -shares[1:] * ratios]).T

    floor, top = logs.min() + math.log(_LEAST_PART), logs.max() + 1.0
    low = np.array([floor] * (1 + k) + [EXPONENTS[0]] * k)
    high = np.array([top] * (1 + k) + [EXPONENTS[1]] * k)
    found = least_squares(
        lambda row: _log_law(row, ratios)[0] - logs,
        np.clip(start, low + 1e-6, high - 1e-6),
        jacobian,
        (low, high),
        loss="huber",
        f_scale=_HUBER,
        x_scale="jac",
    )
    return found.x, float(found.cost)


def _best(logs: Floats, ratios: Floats) -> Floats:
    return min((_descended(logs, ratios, start) for start in _starts(logs, len(ratios))), key=lambda found: found[1])[0]


def _starts(logs: Floats, k: int) -> Iterator[Floats]:
    for share, *exponents in product(_STARTS[1], *[_STARTS[0]] * k):
        constant = math.exp(logs.min()) * share
        part = max(math.exp(np.median(logs)) - constant, 1e-3 * constant) / k
        yield np.array([math.log(constant), *[math.log(part)] * k, *exponents])


def _interval(value: float, replicas: Sequence[float] | Floats) -> Interval:
    low, high = np.quantile(replicas, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
