"""A right log ratio is called right, and each way of being wrong shows in the number that is named after it."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close
from two_mixtures import LEVELS, STUDENT, both_sides, generator

from fdistill.evaluation.ratio_calibration import (
    noised_logits,
    reliability,
    reliability_by_noise,
)


def logits(n, m, distance, seed):
    """Exact log ratios of two unit Gaussians on a line: l is N(-+d^2/2, d^2)."""
    noise = torch.randn(n + m, dtype=torch.float64, generator=generator(seed))
    return distance * noise[:n] - distance**2 / 2, distance * noise[n:] + distance**2 / 2


def test_an_exact_log_ratio_is_reliable_whatever_the_sizes_of_the_two_sides():
    fake, real = both_sides()
    found = reliability(fake.logit, real.logit)
    for estimate, right in ((found.slope, 1), (found.offset, 0), (found.mean_ratio, 1), (found.mean_inverse, 1)):
        assert abs(estimate.value - right) < 4 * estimate.standard_error
    assert found.slope.standard_error < 0.02
    deviations = (found.observed - found.predicted) / found.standard_error
    assert len(deviations) == 15
    assert deviations.square().sum() < 15 + 4 * math.sqrt(2 * 15)
    assert 0 < found.calibration_error < 2 * found.calibration_floor
    assert found.calibration_floor < 0.01


def test_predictions_of_an_exact_log_ratio_are_right_in_bins_of_any_width():
    fake, real = logits(50_000, 50_000, 2.0, seed=0)
    for num_bins in (1, 2, 4):
        found = reliability(fake, real, num_bins)
        assert len(found.predicted) == num_bins
        assert ((found.observed - found.predicted).abs() < 4 * found.standard_error).all()


def test_stretched_and_shifted_logits_change_slope_and_offset_accordingly():
    fake, real = logits(3000, 2000, 1.5, seed=1)
    right, wrong = reliability(fake, real), reliability(2 * fake + 0.7, 2 * real + 0.7)
    assert_close(wrong.slope.value, right.slope.value / 2, rtol=1e-6, atol=0)
    assert_close(wrong.slope.standard_error, right.slope.standard_error / 2, rtol=1e-4, atol=0)
    assert_close(wrong.offset.value, right.offset.value - 0.7 * wrong.slope.value, rtol=0, atol=1e-6)
    assert_close(wrong.observed, right.observed)
    assert wrong.calibration_error > 5 * wrong.calibration_floor
    assert wrong.mean_ratio.value > 2


def test_slope_and_offset_vary_by_their_standard_errors():
    found = [reliability(*logits(400, 300, 1.5, seed), num_bins=1) for seed in range(150)]
    slopes = torch.tensor([one.slope.value for one in found])
    offsets = torch.tensor([one.offset.value for one in found])
    assert slopes.std().item() == pytest.approx(found[0].slope.standard_error, rel=0.2)
    assert offsets.std().item() == pytest.approx(found[0].offset.standard_error, rel=0.2)


def test_exchanging_teacher_and_student_turns_everything_around():
    fake, real = logits(500, 700, 1.0, seed=2)
    here, there = reliability(fake, real), reliability(-real, -fake)
    assert_close(there.slope.value, here.slope.value, rtol=1e-6, atol=0)
    assert_close(there.offset.value, -here.offset.value, rtol=0, atol=1e-6)
    assert there.mean_ratio == here.mean_inverse
    assert there.mean_inverse == here.mean_ratio


def test_two_outcomes_are_two_bins_with_the_shares_that_they_have():
    two = math.log(2)
    fake, real = torch.tensor([two, -two, -two]).double(), torch.tensor([two, two, -two]).double()
    found = reliability(fake.repeat(10_000), real.repeat(10_000), num_bins=9)
    assert_close(found.predicted, torch.tensor([-two, two], dtype=torch.float64))
    assert_close(found.observed, found.predicted, rtol=0, atol=1e-4)  # half a sample
    assert found.calibration_error == pytest.approx(0, abs=1e-8)
    assert found.slope.value == pytest.approx(1, abs=1e-6)
    assert found.offset.value == pytest.approx(0, abs=1e-6)
    assert found.mean_ratio.value == pytest.approx(1)
    assert found.mean_inverse.value == pytest.approx(1)


@pytest.mark.parametrize("real", [torch.zeros(5), torch.ones(5), -torch.ones(5)], ids=["equal", "above", "below"])
def test_where_no_line_is_most_likely_there_is_none(real):
    found = reliability(torch.zeros(5), real)
    assert math.isnan(found.slope.value)
    assert math.isnan(found.offset.value)
    assert found.observed.isfinite().all()


def test_enormous_logits_have_finite_predictions():
    fake, real = logits(50, 50, 1.0, seed=3)
    found = reliability(400 * fake, 400 * real, num_bins=5)
    assert found.predicted.isfinite().all()
    assert (found.predicted.diff() > 0).all()
    assert 0 < found.slope.value < 0.01


@pytest.mark.parametrize("wrong", [torch.tensor([0.0, math.nan]), torch.zeros(0), torch.zeros(2, 1)])
def test_sides_without_one_finite_logit_a_sample_are_refused(wrong):
    with pytest.raises(ValueError, match="logit"):
        reliability(torch.zeros(3), wrong)


def test_noise_groups_are_equally_likely_in_order_and_hold_every_sample():
    fake, real = both_sides(3000, 2000)
    groups = reliability_by_noise(fake, real, LEVELS, groups=4, num_bins=5)
    assert sum(len(group.fake_logit) for group in groups) == 3000
    assert sum(len(group.real_logit) for group in groups) == 2000
    assert all(abs(len(group.fake_logit) - 750) < 5 * math.sqrt(750) for group in groups)
    assert all(below.highest <= above.lowest for below, above in pairwise(groups))
    assert all(abs(group.reliability.slope.value - 1) < 4 * group.reliability.slope.standard_error for group in groups)


def test_logits_of_noised_samples_are_those_of_one_call_with_their_own_labels():
    x_0, labels = STUDENT.sample(2500, generator())[0], torch.arange(2500)
    found = noised_logits(lambda x, sigma, label: x[:, 0] * sigma + label, x_0, labels, LEVELS, generator(1))
    assert_close(found.logit, found.x_t[:, 0] * found.sigma + labels)
    assert len(found.sigma.unique()) == 2500
