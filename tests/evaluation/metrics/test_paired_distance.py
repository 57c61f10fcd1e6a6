"""Truths about the distance of samples made from the same noise."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.metrics import PairedDistance, paired_distance
from fdistill.evaluation.metrics.blocks import ROWS


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_of_the_same_map_is_zero_and_of_a_shift_its_length():
    x = normal(50, 3)
    assert paired_distance(x, x) == 0
    assert_close(paired_distance(x + torch.tensor([3.0, 0.0, 4.0]), x), torch.tensor(5.0).double(), rtol=1e-12, atol=0)


def test_of_independent_gaussians_is_the_mean_of_a_chi_distribution():
    d, n = 3, 20_000
    mean = 2 * math.gamma((d + 1) / 2) / math.gamma(d / 2)  # E|N(0, 2 I)|
    std = math.sqrt(2 * d - mean**2)
    assert paired_distance(normal(n, d), normal(n, d, seed=1)).item() == pytest.approx(mean, abs=3 * std / n**0.5)


def test_sees_which_sample_belongs_to_which_noise():
    x = normal(200, 2)
    assert paired_distance(x.roll(1, dims=0), x) > 1


@pytest.mark.parametrize(("of_student", "of_teacher"), [(1, 1), (7, 13), (100, 3), (100, 100)])
def test_batches_of_any_sizes_pair_by_order(of_student, of_teacher):
    student, teacher = normal(100, 4), normal(100, 4, seed=1)
    metric, waiting = (
        PairedDistance(),
        {True: list(teacher.split(of_teacher)), False: list(student.split(of_student))},
    )
    while any(waiting.values()):
        for real, batches in waiting.items():
            if batches:
                metric.update(batches.pop(0), real=real)
    assert_close(metric.compute(), paired_distance(student, teacher), rtol=1e-12, atol=0)


def test_several_blocks_are_one():
    student, teacher = normal(2 * ROWS + 5, 2), normal(2 * ROWS + 5, 2, seed=1)
    assert_close(paired_distance(student, teacher), (student - teacher).norm(dim=1).mean(), rtol=1e-12, atol=0)


def test_samples_without_a_partner_raise_and_may_still_get_one():
    x = normal(5, 2)
    metric = PairedDistance()
    metric.update(x, real=False)
    with pytest.raises(ValueError, match="student"):
        metric.compute()
    metric.update(x[:4] + 1, real=True)
    with pytest.raises(ValueError, match=r"got \[1\] more"):
        metric.compute()
    metric.update(x[4:] + 1, real=True)
    assert metric.compute().item() == pytest.approx(math.sqrt(2), rel=1e-12)


def test_broken_samples_raise():
    x = normal(5, 2)
    with pytest.raises(ValueError, match="student"):
        paired_distance(x, x[:4])
    with pytest.raises(ValueError, match="broken"):
        paired_distance(torch.where(x == x[0, 0], torch.nan, x), x)
