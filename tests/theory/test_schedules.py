"""Schedules begin and end exactly, never turn back between, and stay where they are outside."""

import json
import math
from itertools import pairwise

import pytest

from fdistill.theory.schedules import Cosine, Exponential, Linear, Schedule, Steps, value_at

RAMPS = {
    f"{cls.__name__} {start} to {end}": cls(start, end, 97, delay=11)
    for cls in (Linear, Cosine, Exponential)
    for start, end in ((0.1, 0.7), (0.7, 0.1), (-3.0, -1e-4), (1e-30, 1e30), (0.3, 0.3))
}
RAMPS |= {
    f"{cls.__name__} {start} to {end}": cls(start, end, 97, delay=11)
    for cls in (Linear, Cosine)
    for start, end in ((0.0, 1.0), (-2.0, 1.0), (1, 0))
}
every_ramp = pytest.mark.parametrize("ramp", RAMPS.values(), ids=RAMPS)


@every_ramp
def test_a_ramp_is_exact_at_both_ends_and_constant_outside(ramp):
    assert [ramp.at(update) for update in (0, 5, 11)] == [ramp.start] * 3
    assert [ramp.at(update) for update in (108, 109, 10**9)] == [ramp.end] * 3


@every_ramp
def test_a_ramp_never_turns_back(ramp):
    values = [ramp.at(update) for update in range(130)]
    assert values == sorted(values, reverse=ramp.start > ramp.end)


@every_ramp
def test_a_ramp_gives_floats(ramp):
    assert {type(ramp.at(update)) for update in (0, 50, 200)} == {float}


@pytest.mark.parametrize("cls", [Linear, Cosine, Exponential])
def test_delay_shifts_and_does_nothing_else(cls):
    late, early = cls(0.2, 0.9, 40, delay=15), cls(0.2, 0.9, 40)
    assert [late.at(update + 15) for update in range(60)] == [early.at(update) for update in range(60)]


@pytest.mark.parametrize(
    ("cls", "middle"), [(Linear, 0.5 * (2 + 8)), (Cosine, 0.5 * (2 + 8)), (Exponential, math.sqrt(2 * 8))]
)
def test_half_way_is_the_arithmetic_or_the_geometric_mean(cls, middle):
    assert cls(2.0, 8.0, 10).at(5) == pytest.approx(middle, rel=1e-15)


def test_linear_makes_equal_steps_and_exponential_equal_factors():
    linear, exponential = ([cls(3.0, 0.5, 20).at(update) for update in range(21)] for cls in (Linear, Exponential))
    assert [b - a for a, b in pairwise(linear)] == pytest.approx([-0.125] * 20, rel=1e-12)
    assert [b / a for a, b in pairwise(exponential)] == pytest.approx([6**-0.05] * 20)


def test_cosine_is_flat_at_its_ends_and_point_symmetric():
    values = [Cosine(0.0, 1.0, 1000).at(update) for update in range(1001)]
    assert values[1] == pytest.approx((math.pi / 2000) ** 2, rel=1e-5)  # 1 - cos is quadratic
    assert [a + b for a, b in zip(values, reversed(values), strict=True)] == pytest.approx([1.0] * 1001)


def test_steps_hold_each_value_from_its_boundary_to_the_next():
    steps = Steps([1.0, -2, 0.5], [10, 12])
    assert [steps.at(update) for update in (0, 9, 10, 11, 12, 10**6)] == [1.0, 1.0, -2.0, -2.0, 0.5, 0.5]
    assert Steps([3.0], []).at(7) == 3.0


def test_a_number_is_a_schedule_that_never_changes():
    assert value_at(2, 5) == 2.0
    assert value_at(Linear(0.0, 1.0, 10), 5) == 0.5


@pytest.mark.parametrize("schedule", [*RAMPS.values(), Steps((1.0, 2.0), (5,))], ids=[*RAMPS, "Steps"])
def test_every_schedule_is_rebuilt_from_its_description(schedule):
    again = Schedule.from_spec(json.loads(json.dumps(schedule.spec())))
    assert again.spec() == schedule.spec()
    assert [again.at(update) for update in range(120)] == [schedule.at(update) for update in range(120)]


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Linear(0.0, math.inf, 10), "finite"),
        (lambda: Cosine(math.nan, 1.0, 10), "finite"),
        (lambda: Linear(0.0, 1.0, 0), "updates"),
        (lambda: Linear(0.0, 1.0, 10, delay=-1), "delay"),
        *[(lambda e=e: Exponential(1.0, e, 10), "one sign") for e in (0.0, -1.0)],
        (lambda: Exponential(0.0, 0.0, 10), "sign"),
        (lambda: Steps([1.0], [3]), "boundaries"),
        (lambda: Steps([1.0, math.nan], [3]), "finite"),
        *[(lambda b=b: Steps([1.0, 2.0, 3.0], b), "increasing order") for b in ([5, 5], [5, 4], [0, 4])],
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(build, match):
    with pytest.raises(ValueError, match=match) as caught:
        build()
    assert "\n" not in str(caught.value)
