"""A run stops when it becomes worse or no longer better, and not before."""

import itertools
import math
import random

import pytest

from fdistill.evaluation.stop_rule import LEAST_WINDOW, LEAST_WINDOWS, WORSE, rank_z, why_stop


def first_stop(values, window=5, lower_is_better=True):
    return next((n for n in range(len(values) + 1) if why_stop(values[:n], window, lower_is_better)), None)


def noisy(curve, n, scatter, seed=0):
    rng = random.Random(seed)
    return [curve(i / n) * math.exp(scatter * rng.gauss(0, 1)) for i in range(1, n + 1)]


@pytest.mark.parametrize(("n", "m"), [(3, 4), (5, 5)])
def test_the_rank_statistic_has_mean_0_and_variance_1_over_all_orders_of_equal_laws(n, m):
    places = [set(chosen) for chosen in itertools.combinations(range(n + m), n)]
    z = [rank_z(sorted(a), [i for i in range(n + m) if i not in a]) for a in places]
    assert sum(z) == pytest.approx(0, abs=1e-9)
    assert sum(v * v for v in z) / len(z) == pytest.approx(1)


def test_the_rank_statistic_changes_sign_with_its_arguments_and_not_with_an_increasing_map():
    a, b = [1.0, 2.5, 3.0, 7.0], [1.5, 2.5, 2.6]
    assert rank_z(a, b) == pytest.approx(-rank_z(b, a))
    assert rank_z(a, b) == pytest.approx(rank_z([math.exp(x) for x in a], [math.exp(x) for x in b]))


def test_the_least_window_is_the_first_that_can_be_worse():
    apart = [rank_z([1.0] * w, [0.0] * w) for w in (LEAST_WINDOW - 1, LEAST_WINDOW)]
    assert apart[0] < WORSE < apart[1]


def test_a_run_that_goes_on_getting_better_goes_on():
    assert first_stop([1 / n for n in range(1, 200)]) is None
    assert first_stop(noisy(lambda x: x**-0.5, 200, 0.02)) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_falls_and_rises_is_stopped_soon_after_its_best(seed):
    values = noisy(lambda x: 1 + 5 * math.exp(-15 * x) + max(0, 3 * x - 1), 150, 0.03, seed)
    assert 35 < first_stop(values) < 65  # the best is at 50


def test_a_run_that_stays_where_it_is_is_stopped():
    assert first_stop(noisy(lambda x: 1 + 5 * math.exp(-15 * x), 150, 0.05)) < 120


def test_a_rise_at_the_start_is_forgiven():
    values = noisy(lambda x: 1 + 3 * math.exp(-((20 * x - 1) ** 2)) + 2 * math.exp(-5 * x), 150, 0.02)
    assert max(values[:15]) > values[0]
    assert first_stop(values) > 75


def test_it_is_the_same_for_a_metric_that_should_rise():
    values = noisy(lambda x: 1 + math.exp(-15 * x) + max(0, 3 * x - 1), 150, 0.03)
    assert first_stop([-v for v in values], lower_is_better=False) == first_stop(values)


@pytest.mark.parametrize("window", [5, 8])
def test_nothing_is_decided_before_four_windows(window):
    falling_apart = [float(n) for n in range(100)]
    assert first_stop(falling_apart, window) == LEAST_WINDOWS * window


def test_a_value_that_is_not_finite_is_worse_than_every_other():
    good = [1 / n for n in range(1, 31)]
    assert why_stop([*good, math.nan, -math.inf], 5) is None
    assert "worse" in why_stop([*good, *[math.nan] * 5], 5)
    assert "nothing better" in why_stop([math.nan] * 20, 5)
