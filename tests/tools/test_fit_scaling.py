"""The committed points give the tool what it needs, and the packaged law is of them."""

import json

import numpy as np
import pytest
from fit_scaling import POINTS, VARIANTS, HeldOut, points_of, rows_of, value

from fdistill.training.planning.power_law import PowerLaw
from fdistill.training.planning.scaling_law import packaged_law

RUNS = json.loads(POINTS.read_text(encoding="utf-8"))["runs"]
LARGEST = max(run["student"] for run in RUNS)


def test_five_students_and_three_teachers_were_measured_and_a_larger_student_held_out():
    seen = [run for run in RUNS if run["student"] < LARGEST]
    assert len({run["student"] for run in seen}) == 5
    assert len({run["teacher"] for run in seen}) == 3
    assert any(run["student"] == LARGEST for run in RUNS)


def test_the_packaged_laws_are_around_the_points_that_they_were_fitted_to():
    seen = [run for run in RUNS if run["student"] < LARGEST]
    for quantity, law in packaged_law().laws.items():
        points = points_of(seen, quantity, next(iter(VARIANTS)))
        at = [{name: column[i] for name, column in points.inputs.items()} for i in range(0, len(points.values), 7)]
        logs = [law.mean(each).value / points.values[7 * i] for i, each in enumerate(at)]
        assert all(abs(ratio - 1) < 4 * law.scatter for ratio in logs)
        assert not any(law.outside(each) for each in at)


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.5, False)])
def test_a_held_out_run_is_predicted_where_it_lies_in_the_interval(factor, holds):
    """L = 1 whatever the inputs, a tenth of scatter, and a run that is there or half as high again."""
    run = next(run for run in RUNS if run["student"] == LARGEST)
    row = [0.0, -20.0, 1.0]
    law = PowerLaw({"samples": 1.0}, {"samples": (1.0, 2.0)}, np.array([row] * 21), 0.1, {})
    curve = [[each[0], each[1], factor, *each[3:]] for each in rows_of(run, 0)]
    assert HeldOut(law, [run | {"curve": curve}], "distance", "D").holds is holds


def test_missed_recall_is_at_least_half_a_sample():
    assert value("missed_recall", [10, 1.0, 0.5, 1.0, 0.4]) == 0.001
    assert value("missed_recall", [10, 1.0, 0.5, 0.75, 0.4]) == 0.25
