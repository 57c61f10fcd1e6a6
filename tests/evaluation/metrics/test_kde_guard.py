"""Truths about kernel density ratios, and where they refuse."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.metrics import kernel_log_ratio
from fdistill.evaluation.metrics.kde_guard import PAIRS


def gaussian_quantiles(n, mean, std):
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (mean + std * torch.special.ndtri(u))[:, None]


def log_normal(x, mean, variance):
    return -0.5 * (x - mean) ** 2 / variance - 0.5 * math.log(variance)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bandwidth", [0.2, 1.0])
def test_of_gaussians_is_the_ratio_of_gaussians_widened_by_the_kernel(bandwidth):
    p, q = gaussian_quantiles(20_000, 0.5, 1.0), gaussian_quantiles(30_000, -0.2, 1.5)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    exact = log_normal(x, 0.5, 1 + bandwidth**2) - log_normal(x, -0.2, 1.5**2 + bandwidth**2)
    assert_close(kernel_log_ratio(x[:, None], p, q, bandwidth), exact, rtol=0, atol=1e-3)


def test_tends_to_the_true_ratio_as_scotts_kernel_narrows():
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)
    exact = log_normal(x, 0.5, 1) - log_normal(x, 0, 1)
    errors = []
    for n in (1000, 100_000):
        ratio = kernel_log_ratio(x[:, None], gaussian_quantiles(n, 0.5, 1), gaussian_quantiles(n, 0, 1))
        errors.append((ratio - exact).abs().max())
    # the bias is of order h^2 = n^{-2/5}: a hundred times the samples make it 6.3 times smaller
    assert errors[1] < 0.05
    assert 4 < errors[0] / errors[1] < 9


def test_swapping_the_sets_swaps_the_sign_and_equal_sets_give_zero():
    p, q, x = normal(500, 2), normal(400, 2, seed=1), normal(50, 2, seed=2)
    assert_close(kernel_log_ratio(x, p, q, 0.7), -kernel_log_ratio(x, q, p, 0.7), rtol=1e-9, atol=1e-12)
    assert not kernel_log_ratio(x, p, p).any()


def test_a_translation_of_all_changes_nothing():
    p, q, x = normal(500, 2), normal(400, 2, seed=1), normal(50, 2, seed=2)
    assert_close(kernel_log_ratio(x + 1e4, p + 1e4, q + 1e4), kernel_log_ratio(x, p, q), rtol=1e-7, atol=1e-9)


def test_far_from_all_samples_the_ratio_stays_finite_as_long_as_many_count():
    p, q = torch.zeros(100, 1).double(), torch.ones(100, 1).double()
    # -(x^2 - (x - 1)^2) / (2 h^2) at x = 1000, where each density underflows
    assert kernel_log_ratio(torch.tensor([[1000.0]]), p, q, 1.0).item() == pytest.approx(-1999 / 2, rel=1e-12)


def test_many_points_are_measured_in_blocks():
    p, q, x = normal(3000, 1), normal(2500, 1, seed=1), normal(2000, 1, seed=2)
    assert len(x) > PAIRS // len(p)
    parts = [kernel_log_ratio(part, p, q, 0.5) for part in x.split(900)]
    assert_close(kernel_log_ratio(x, p, q, 0.5), torch.cat(parts), rtol=1e-10, atol=1e-12)


def test_refuses_in_many_dimensions_where_one_sample_outweighs_all():
    for d in (1, 2):
        assert kernel_log_ratio(normal(100, d), normal(2000, d, seed=1), normal(2000, d, seed=2)).isfinite().all()
    for d in (16, 64):
        with pytest.raises(
            ValueError, match=rf"effective sample size >= 30 of the numerator, got .* in {d} dimensions"
        ):
            kernel_log_ratio(normal(100, d), normal(2000, d, seed=1), normal(2000, d, seed=2), 0.5)


def test_refuses_a_kernel_that_is_too_narrow_for_either_side():
    p, q, x = normal(2000, 1), normal(31, 1, seed=1), normal(100, 1, seed=2)
    with pytest.raises(ValueError, match="denominator"):
        kernel_log_ratio(x, p, q, 0.3)
    with pytest.raises(ValueError, match="numerator"):
        kernel_log_ratio(x, q[:29], p, 100.0)


def test_broken_arguments_raise():
    x = normal(50, 2)
    with pytest.raises(ValueError, match="denominator"):
        kernel_log_ratio(x, x, x[:, :1])
    with pytest.raises(ValueError, match="numerator"):
        kernel_log_ratio(x, x[:1], x)
    with pytest.raises(ValueError, match="bandwidth"):
        kernel_log_ratio(x, x, x, 0)
    with pytest.raises(ValueError, match="got 1 of 50"):
        kernel_log_ratio(torch.where(x == x[0, 0], torch.inf, x), x, x)
