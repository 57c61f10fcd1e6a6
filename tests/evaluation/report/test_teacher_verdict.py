"""A collapse exceeds chance beside both the SDE and real data; its cause is read from the loss at high noise."""

import pytest

from fdistill.evaluation.report.teacher_verdict import SURE, teacher_verdict

HEALTHY = {
    "anchored_tid": 0.0,
    "tid": 0.0,
    "count_ratio": 1.0,
    "recall": 0.9,
    "vendi_ratio": 1.0,
    "frechet_distance": 1.0,
}
ERROR = 0.1
SEES = SURE * 2**0.5 * ERROR  # of a difference of two numbers with this error


def report(excess=0.0, **changes):
    """All rows healthy but for {row_metric: shift}; the last of three bins exceeds by `excess`."""
    rows = {
        row: {
            name: {"mean": value + changes.get(f"{row}_{name}", 0.0), "error": ERROR} for name, value in HEALTHY.items()
        }
        for row in ("real", "sde", "ode")
    }
    bins = {"sigma": [0.1, 2.0, 50.0], "excess": [3.0, 0.0, excess], "standard_error": [0.01] * 3}
    return rows | {"see_saw": bins, "data_std": 1.0}


SIGNS = {"anchored_tid": 1, "tid": 1, "count_ratio": 1, "recall": -1, "vendi_ratio": -1}


@pytest.mark.parametrize(("metric", "sign"), SIGNS.items())
def test_a_number_is_a_collapse_from_three_standard_errors_of_the_difference_on_and_on_its_side_alone(metric, sign):
    for share, expected in ((0.99, False), (1.01, True), (-1.01, False)):
        collapse, says = teacher_verdict(report(**{f"ode_{metric}": share * sign * SEES}))
        assert collapse == expected
        assert (f"{metric} {HEALTHY[metric] + share * sign * SEES:.3g} (stochastic" in says) == expected


@pytest.mark.parametrize("shared", ["sde", "real"])
def test_what_the_sde_or_real_data_show_too_is_no_collapse_of_the_sampler(shared):
    collapse, says = teacher_verdict(report(ode_recall=-0.6, **{f"{shared}_recall": -0.6}))
    assert not collapse
    assert ("both samplers are worse than real data: recall" in says) == (shared == "sde")


def test_stochastic_samples_that_are_narrow_themselves_are_no_yardstick():
    """With few steps the SDE loses variance, and would hide a collapse of the ODE."""
    _, says = teacher_verdict(report(sde_count_ratio=2.0))
    assert "no good yardstick here: see their count_ratio." in says
    assert "yardstick" not in teacher_verdict(report())[1]
    assert "yardstick" not in teacher_verdict(report(ode_recall=-0.9, sde_tid=2.0))[1]  # found out all the same


def test_deterministic_samples_that_lie_farther_without_crowding_are_told_apart():
    collapse, says = teacher_verdict(report(excess=9.0, ode_frechet_distance=2.0))
    assert not collapse
    assert "do not crowd together, but they lie farther from the data" in says
    assert "at sigma 50 its loss is 10 times" in says
    assert "PredictorCorrector" in says


def test_the_cause_is_an_excess_above_the_datas_deviation_and_else_the_steps():
    crowded = {"ode_anchored_tid": 2.0}
    _, high = teacher_verdict(report(excess=0.5, **crowded))
    assert "at sigma 50 its loss is 1.5 times the best linear denoiser's. Try: sample with GDDIM" in high
    _, low = teacher_verdict(report(**crowded))  # of the bin at 0.1 nothing is said
    assert "not above the best linear denoiser's: look for the cause in the sampler, with more --steps" in low


def test_a_healthy_teacher_gets_no_advice_and_one_that_hides_its_error_is_told_of_it():
    collapse, says = teacher_verdict(report())
    assert not collapse
    assert says.startswith("No collapse found")
    assert "Try" not in says
    _, hidden = teacher_verdict(report(excess=0.5))
    assert hidden.endswith("which its samples do not show.")


def test_a_number_without_an_error_or_a_value_is_no_evidence():
    found = report(ode_recall=-0.9, ode_tid=5.0)
    found["ode"]["recall"]["error"] = None
    del found["sde"]["tid"]
    assert not teacher_verdict(found)[0]
