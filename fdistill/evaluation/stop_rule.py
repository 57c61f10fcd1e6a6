"""When a run should stop: two rank tests on the history of one metric.

A value is one draw of samples of one state of the weights: it scatters by both. The scatter is read off neighbouring
measurements, windows of which are compared by the test of Mann and Whitney (1947, doi:10.1214/aoms/1177730491). It
needs no unit, no variance and no shape of the curve; a value that is not finite is worse than every other. Beside it,
tools/study_early_stop.py tries patience and the rules of Prechelt ("Early stopping - but when?", 1998,
doi:10.1007/3-540-49430-8_3).
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import NormalDist

LEAST_WINDOW = 5  # measurements: of 4 and 4, even all above all others is within the level .01
LEAST_WINDOWS = 4  # of measurements, before anything is decided: a run may begin by getting worse
WORSE = NormalDist().inv_cdf(0.99)
BETTER = NormalDist().inv_cdf(0.95)
RECENT = 1 / 3  # of the measurements, in which a run that goes on has to find something better


def rank_z(a: Sequence[float], b: Sequence[float]) -> float:
    """How far a lies above b: Mann and Whitney's U, ties counted half, in standard deviations from its mean n m / 2.

    Its variance is n m (n + m + 1) / 12 where all values are of one law.
    """
    ranked, n, m = sorted(b), len(a), len(b)
    u = sum(bisect_left(ranked, x) + bisect_right(ranked, x) for x in a) / 2
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def why_stop(values: Sequence[float], window: int, lower_is_better: bool = True) -> str | None:
    """Why a run with these measurements should stop after the last of them, in words; None where it should go on.

    With the last w measurements L, the best w in a row B of all before L, the best w in a row R that begin in the last
    third of the run, and the best w in a row E of the two thirds before it, a run stops when

        z(L, B) > 2.33 (level .01): it has become worse; or
        z(E, R) < 1.64 (level .05): it has not become better.

    The levels are those of one test of windows chosen beforehand. Best windows are chosen afterwards, and neighbours
    may depend on each other: how often the rule is wrong was measured (docs/watching.md).

    Args:
        values: of all measurements so far, in order, about equally far apart; at least 4 w before anything is decided.
        window: w, >= 5.
        lower_is_better: whether small values are good.
    """
    n, w = len(values), window
    if n < LEAST_WINDOWS * w:
        return None
    y = [(v if lower_is_better else -v) if math.isfinite(v) else math.inf for v in values]
    windows = [y[i : i + w] for i in range(n - w + 1)]
    best = min(windows[: n - 2 * w + 1], key=_middle)
    if rank_z(windows[-1], best) > WORSE:
        return f"the last {w} measurements are worse than the best {w} in a row"
    recent = math.floor(n * (1 - RECENT))
    before, since = windows[: recent - w + 1], windows[recent:]
    if rank_z(min(before, key=_middle), min(since, key=_middle)) < BETTER:
        return f"the last {n - recent} measurements brought nothing better than the {recent} before"
    return None


def _middle(window: Sequence[float]) -> float:
    return sorted(window)[len(window) // 2]
