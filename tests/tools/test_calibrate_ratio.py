"""Errors of a log ratio are found where the exact one is known, and stage 1 mends those of each noise bin."""

import math

import torch
from calibrate_ratio import misplaced_weight, ratio_errors
from torch.testing import assert_close
from two_mixtures import LEVELS, STUDENT, TEACHER, both_sides, generator

from fdistill.evaluation.ratio_calibration import reliability
from fdistill.objectives.log_ratio import ExactRatio, RatioEstimator


def test_errors_against_the_exact_ratio_are_those_that_were_put_in():
    truth = torch.randn(900, dtype=torch.float64, generator=generator())
    bins = torch.arange(900) % 3
    offset = torch.tensor([0.5, -0.3, 0.0], dtype=torch.float64)
    shifted, stretched = ratio_errors(bins, truth + offset[bins], truth, 4), ratio_errors(bins, 2 * truth, truth, 4)
    assert_close(shifted.bias[:3], offset)
    assert_close(shifted.rms[:3], offset.abs())
    assert_close(shifted.slope[:3], torch.ones(3, dtype=torch.float64))
    assert_close(stretched.slope[:3], torch.full((3,), 0.5, dtype=torch.float64))
    assert_close(stretched.correlation[:3], torch.ones(3, dtype=torch.float64))
    assert all(column[3].isnan() for column in shifted)


def test_stage_one_mends_an_offset_of_each_noise_bin_but_not_a_slope():
    bins, offset = 4, torch.tensor([0.7, -0.5, 0.0, 1.2], dtype=torch.float64)
    shifted, stretched = (
        RatioEstimator(ExactRatio(TEACHER, STUDENT), LEVELS, 0.8, bins, clip=(0, math.inf)) for _ in "ab"
    )
    for seed in range(60):
        fake, _ = both_sides(4000, 1, seed)
        shifted.decay = stretched.decay = seed / (seed + 1)  # a plain mean over all batches
        shifted.log_ratio(fake.logit + offset[shifted.bin_of(fake.sigma)], fake.sigma)
        stretched.log_ratio(2 * fake.logit, fake.sigma)
    fake, real = both_sides(40_000, 40_000, seed=1000)
    which = shifted.bin_of(fake.sigma)
    mended = ratio_errors(which, shifted.centred(fake.logit + offset[which], fake.sigma), fake.logit, bins)
    assert mended.bias.abs().max() < 0.05
    assert (mended.mean_ratio - 1).abs().max() < 0.1
    twice = ratio_errors(which, stretched.centred(2 * fake.logit, fake.sigma), fake.logit, bins)
    assert_close(twice.slope, torch.full((bins,), 0.5, dtype=torch.float64), rtol=1e-5, atol=0)
    assert twice.bias.abs().min() > 0.1
    sides = (stretched.centred(2 * side.logit, side.sigma) for side in (fake, real))
    assert reliability(*sides).slope.value < 0.6


def test_misplaced_weight_is_the_distance_of_two_laws_over_the_samples():
    weight = torch.rand(100, generator=generator())
    bins = torch.arange(100) % 5
    assert_close(misplaced_weight(bins, 7 * weight, weight, 5), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-7)
    left, right = torch.tensor([1.0, 1, 0, 0]), torch.tensor([0.0, 0, 1, 3])
    assert_close(misplaced_weight(torch.tensor([0, 1, 0, 1]), left, right, 2), torch.tensor([0.375, 0.625]).double())
