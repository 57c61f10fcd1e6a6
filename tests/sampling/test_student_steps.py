"""A student's first step starts from sigma z, or from noise that has unit variance on a variance-preserving path."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.sampling import renoise
from fdistill.sampling.student_steps import check_start, start_scale


def test_a_unit_start_has_unit_variance_on_a_variance_preserving_path():
    z, sigma = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), 1.16
    alpha = (1 + sigma**2) ** -0.5
    assert_close(alpha * renoise(None, z, sigma, "unit"), z)
    assert_close(renoise(None, z, sigma), sigma * z)


def test_both_starts_are_one_where_sigma_stands_for_infinity():
    assert start_scale(1e8, "unit") == start_scale(1e8, "sigma")


def test_further_steps_have_no_start():
    x, z = torch.ones(2, 3), torch.ones(2, 3)
    assert_close(renoise(x, z, 0.5, "unit"), renoise(x, z, 0.5, "sigma"))


def test_another_start_is_an_error():
    with pytest.raises(ValueError, match="sigma or of unit"):
        check_start("zero")
