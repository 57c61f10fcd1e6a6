"""The fit finds the law that made the points, with intervals that hold it, and says when it cannot."""

import dataclasses
import json
import re

import numpy as np
import pytest

from fdistill.training.planning.power_law import CannotSay, Points, PowerLaw, fit_power_law, trends

TRUTH = {"E": 0.3, "A samples": 0.5, "a samples": 0.7}
SAMPLES = np.geomspace(500, 12_000, 8)


def curves(runs=12, scatter=0.0, seed=0, values=None, **more):
    """Points of a known law in samples, half of the variance of log L a run's own; further inputs by run."""
    rng = np.random.default_rng(seed)
    place = np.repeat(np.arange(runs), len(SAMPLES))
    x = np.tile(SAMPLES, runs)
    law = TRUTH["E"] + TRUTH["A samples"] * (x / np.sqrt(SAMPLES[0] * SAMPLES[-1])) ** -TRUTH["a samples"]
    noise = scatter / 2**0.5 * (rng.normal(size=runs)[place] + rng.normal(size=len(place)))
    inputs = {"samples": x} | {name: np.asarray(column, float)[place] for name, column in more.items()}
    return Points(inputs, (law if values is None else values(x)) * np.exp(noise), place)


def test_without_noise_constant_and_exponents_are_those_of_the_law():
    found = fit_power_law(curves(), replicas=20).parameters()
    assert {name: found[name].value for name in TRUTH} == pytest.approx(TRUTH, rel=1e-4)


def test_two_inputs_are_told_apart():
    sizes = np.tile([1e4, 3e4, 1e5, 3e5], 3)
    points = curves(size=sizes)
    more = 0.2 * (points.inputs["size"] / np.exp(np.log(sizes).mean())) ** -0.5
    found = fit_power_law(dataclasses.replace(points, values=points.values + more), replicas=20).parameters()
    expected = TRUTH | {"A size": 0.2, "a size": 0.5}
    assert {name: found[name].value for name in expected} == pytest.approx(expected, rel=1e-3)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """More repetitions, of a law in two inputs: tools/fit_scaling.py --check."""
    held = []
    for seed in range(8):
        law = fit_power_law(curves(scatter=0.05, seed=seed), replicas=30, seed=seed)
        held += [law.parameters()[name].holds(value) for name, value in TRUTH.items()]
        held.append(law.mean({"samples": np.sqrt(SAMPLES[0] * SAMPLES[-1])}).holds(0.8))
    assert np.mean(held) > 0.8


def test_a_single_run_strays_further_than_the_mean():
    law = fit_power_law(curves(scatter=0.1), replicas=20)
    mean, run = (of({"samples": 2_000.0}) for of in (law.mean, law.single_run))
    assert run.low < mean.low < mean.value == run.value < mean.high < run.high
    assert law.scatter == pytest.approx(0.1, rel=0.3)


def test_inputs_without_a_trend_or_against_it_are_left_out_and_named():
    rising = np.tile([1.0, 2.0, 4.0, 8.0], 3)
    points = curves(scatter=0.02, seed=1, any=np.repeat([1.0, 2.0, 4.0], 4), rising=rising)
    points = dataclasses.replace(points, values=points.values * points.inputs["rising"] ** 0.3)
    law = fit_power_law(points, replicas=20)
    assert list(law.middle) == ["samples"]
    assert law.left_out["any"].startswith("no trend with any (log-log slope")
    assert law.left_out["rising"].startswith("rises with rising (log-log slope 0.3,")
    assert law.outside({"samples": 600.0, "any": 2.0, "rising": 9.0}) == ["rising 9 is not within 1 to 8"]


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (curves(values=lambda x: 0 * x + 0.5), "all 96 values are 0.5"),
        (curves(scatter=0.1, values=lambda x: 0 * x + 0.5), "no trend with samples (log-log slope"),
        (curves(values=lambda x: x), "rises with samples (log-log slope 1"),
        (Points({"samples": np.array([1.0, 2.0])}, np.array([2.0, 1.0]), np.arange(2)), "needs 3 values of samples"),
        (curves(runs=3), "at least 4 runs, got 24 points of 3"),
        (curves(size=np.repeat([1.0, 2.0], 6)), "needs 3 values of size, got 2"),
    ],
    ids=["equal", "noise", "rising", "two points", "few runs", "two sizes"],
)
def test_points_that_determine_no_law_are_answered_in_one_line(points, reason):
    with pytest.raises(CannotSay, match=re.escape(reason)) as caught:
        fit_power_law(points, replicas=20)
    assert str(caught.value).startswith("cannot say: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_values_that_have_no_logarithm_are_refused(value):
    with pytest.raises(ValueError, match="positive finite numbers"):
        Points({"samples": np.array([1.0, 2.0])}, np.array([1.0, value]), np.arange(2))


def test_the_slope_of_a_pure_power_law_is_its_exponent():
    (slope,) = trends(curves(values=lambda x: 3 * x**-0.25)).values()
    assert tuple(slope) == pytest.approx((-0.25, -0.25, -0.25), abs=1e-9)


def test_an_input_that_does_nothing_has_a_trend_as_rarely_as_the_level_says():
    """One of 20 at the level of 95%; 12 of 100 is three standard deviations from it."""
    size = np.repeat([1.0, 2.0, 4.0], 4)
    slopes = [trends(curves(scatter=0.05, seed=seed, size=size))["size"] for seed in range(100)]
    assert sum(not slope.holds(0.0) for slope in slopes) <= 12


def test_a_law_is_the_same_after_a_file():
    law = fit_power_law(curves(scatter=0.05), replicas=20)
    again = PowerLaw.from_json(json.loads(json.dumps(law.to_json())))
    at = {"samples": 3_000.0}
    assert again.single_run(at) == pytest.approx(law.single_run(at), rel=1e-3)
    assert (again.ranges, again.middle, again.scatter) == (law.ranges, law.middle, law.scatter)
