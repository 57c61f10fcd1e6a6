"""Bands from real halves, and when leaving them is called a collapse."""

import math

import pytest
import torch

from fdistill.core.random import generator_for
from fdistill.evaluation.collapse_alarm import WATCHED, Band, CollapseAlarm, Watch, band, bands, half_splits

FALLS, RISES = Watch(True, 0.25, ""), Watch(False, 1.0, "")


def alarm(**changes):
    return CollapseAlarm({"recall": Band(0.6, math.inf), "anchored_tid": Band(-math.inf, 1.5)}, **changes)


def verdicts(alarm, recalls, **values):
    return [alarm.update({"recall": recall, **values}, 100 * i).alarm for i, recall in enumerate(recalls, 1)]


def test_the_edge_is_the_tolerance_away_from_the_median_where_the_null_does_not_vary():
    constant = torch.full((5,), 0.8)
    assert band(constant, FALLS).low == pytest.approx(0.6)
    assert band(constant, FALLS).high == math.inf
    assert band(constant, RISES).high == pytest.approx(1.8)
    assert band(constant, RISES).low == -math.inf


def test_the_band_of_a_null_holds_what_the_null_draws():
    null = 0.9 + 0.02 * torch.randn(20, generator=generator_for(0))
    edges = band(null, Watch(True, 0.0, ""))
    fresh = 0.9 + 0.02 * torch.randn(1000, generator=generator_for(1))
    assert sum(edges.margin(float(value)) < 0 for value in fresh) <= 3


@pytest.mark.parametrize(
    ("watch", "teacher", "low", "high"),
    [
        (FALLS, 0.7, 0.6, math.inf),  # inside the band, which stays
        (FALLS, 0.4, 0.3, math.inf),
        (RISES, 1.7, -math.inf, 1.8),
        (RISES, 3.0, -math.inf, 4.0),
    ],
)
def test_a_student_is_not_asked_for_more_than_its_teacher_has(watch, teacher, low, high):
    found = band(torch.full((5,), 0.8), watch, teacher)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert bands({"recall": torch.full((5,), 0.8)}, {"recall": watch}, {"recall": teacher}) == {"recall": found}
    assert bands({"recall": torch.full((5,), 0.8)}, {"recall": watch}, {"vendi": 0.0}) == {
        "recall": band(torch.full((5,), 0.8), watch)
    }


def test_a_null_that_cannot_be_trusted_is_refused():
    for values in ([0.8], [0.8, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            band(torch.tensor(values), FALLS)


def test_only_what_the_null_knows_is_watched():
    assert set(bands({"recall": torch.tensor([0.8, 0.9]), "density": torch.ones(2)})) == {"recall"}
    assert all(watch.tolerance > 0 and watch.says for watch in WATCHED.values())


def test_one_evaluation_outside_is_chance_and_two_in_a_row_are_a_collapse():
    assert verdicts(alarm(), [0.9, 0.3, 0.9, 0.3, 0.3, 0.3, 0.8]) == [False, False, False, False, True, True, False]


def test_two_metrics_that_leave_in_turn_are_not_the_same_collapse():
    watching = alarm()
    assert not watching.update({"recall": 0.1, "anchored_tid": 0.0}, 1).alarm
    assert not watching.update({"recall": 0.9, "anchored_tid": 9.0}, 2).alarm
    assert watching.update({"recall": 0.9, "anchored_tid": 9.0}, 3).alarm


def test_nan_is_outside_every_band_and_an_absent_metric_is_in_none():
    assert verdicts(alarm(), [math.nan, math.nan]) == [False, True]
    watching = alarm()
    assert [watching.update({"recall": 0.9}, i).margins.keys() for i in range(2)] == [{"recall"}, {"recall"}]


def test_before_the_grace_is_over_only_a_student_that_was_once_healthy_can_collapse():
    assert verdicts(alarm(grace=400), [0.1, 0.2, 0.3, 0.3, 0.3, 0.3]) == [False, False, False, False, True, True]
    assert verdicts(alarm(grace=1000), [0.1, 0.9, 0.1, 0.1]) == [False, False, False, True]


def test_the_reason_names_the_metric_its_edge_what_it_means_what_is_missing_and_since_when():
    watching = alarm()
    verdicts(watching, [0.9, 0.3])
    reason = watching.update({"recall": 0.25, "anchored_tid": 0.0}, 300, missing=[3, 7]).reason
    assert reason == (
        "recall 0.25 is below 0.6 (real samples that the student no longer makes); without samples: 3, 7; "
        "since update 200"
    )


def test_margins_are_positive_inside_and_negative_outside():
    margins = alarm().update({"recall": 0.5, "anchored_tid": 1.0}, 1).margins
    assert margins == pytest.approx({"recall": -0.1, "anchored_tid": 0.5})


def test_a_restored_alarm_continues_the_row():
    before, after = alarm(), alarm()
    verdicts(before, [0.9, 0.3])
    after.restore(before.state())
    assert after.update({"recall": 0.3}, 300).alarm


def test_half_splits_are_disjoint_equal_and_different():
    splits = half_splits(11, 4, generator_for(0))
    for a, b in splits:
        assert len(a) == len(b) == 5
        assert not set(a.tolist()) & set(b.tolist())
    assert len({tuple(a.tolist()) for a, _ in splits}) == 4
    with pytest.raises(ValueError, match="n >= 4"):
        half_splits(3, 2, generator_for(0))
