"""Truths about the kernel distance and its standard error."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.metrics import KernelDistance, kernel_distance
from fdistill.evaluation.metrics.blocks import ROWS


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(x, y, kernel):
    within_x = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    within_y = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    across = [kernel(a, b) for a in x for b in y]
    mean_x, mean_y, mean_xy = (torch.stack(values).mean() for values in (within_x, within_y, across))
    return mean_x + mean_y - 2 * mean_xy


@pytest.mark.parametrize(
    ("arguments", "kernel"),
    [
        ({}, lambda a, b: (a @ b / 4 + 1) ** 3),
        ({"degree": 2, "gamma": 0.5, "coef": 0.0}, lambda a, b: (0.5 * a @ b) ** 2),
        ({"kernel": "rbf", "bandwidth": 1.5}, lambda a, b: torch.exp(-(a - b).square().sum() / (2 * 1.5**2))),
    ],
)
def test_is_the_mean_over_all_pairs_of_different_samples(arguments, kernel):
    x, y = normal(13, 4), 0.5 + normal(9, 4, seed=1)
    assert_close(kernel_distance(x, y, **arguments).distance, brute_force(x, y, kernel), rtol=1e-12, atol=0)


def test_standard_error_is_that_of_the_jackknife():
    x, y = normal(7, 3), 0.5 + normal(11, 3, seed=1)
    variance = 0
    for side in range(2):
        sets = [[x, y] for _ in (x, y)[side]]
        for i, pair in enumerate(sets):
            pair[side] = torch.cat([pair[side][:i], pair[side][i + 1 :]])
        left_out = torch.stack([kernel_distance(*pair).distance for pair in sets])
        variance += (len(sets) - 1) / len(sets) * (left_out - left_out.mean()).square().sum()
    assert_close(kernel_distance(x, y).standard_error, variance.sqrt(), rtol=1e-9, atol=0)


def test_of_the_linear_kernel_is_the_squared_difference_of_means_less_its_noise():
    x, y = normal(40, 5), 1 + 2 * normal(30, 5, seed=1)
    noise = torch.cov(x.T).trace() / len(x) + torch.cov(y.T).trace() / len(y)
    exact = (x.mean(0) - y.mean(0)).square().sum() - noise
    assert_close(kernel_distance(x, y, degree=1, gamma=1.0, coef=3.0).distance, exact, rtol=1e-11, atol=0)


@pytest.mark.parametrize("arguments", [{}, {"kernel": "rbf", "bandwidth": 2.0}])
def test_is_zero_on_average_for_equal_laws_and_its_error_too_large_rather_than_too_small(arguments):
    draws = [kernel_distance(normal(60, 4, seed=2 * s), normal(50, 4, seed=2 * s + 1), **arguments) for s in range(400)]
    distance, error = (torch.stack(values) for values in zip(*draws, strict=True))
    assert distance.mean().abs() < 3 * distance.std() / len(draws) ** 0.5
    assert (distance < 0).double().mean() > 0.4
    # a degenerate statistic: the squared error is twice the variance
    assert 1.2 < error.square().mean().sqrt() / distance.std() < 1.7


def test_standard_error_between_distinct_laws_is_the_scatter_of_the_distance():
    draws = [kernel_distance(normal(60, 4, seed=2 * s) + 1, normal(50, 4, seed=2 * s + 1)) for s in range(400)]
    distance, error = (torch.stack(values) for values in zip(*draws, strict=True))
    assert 0.9 < error.square().mean().sqrt() / distance.std() < 1.2


def test_of_gaussians_under_the_rbf_kernel_is_the_closed_form():
    # E k(x, y) for x - y ~ N(m, v I) is (1 + v / h^2)^{-d/2} exp(-|m|^2 / (2 (h^2 + v)))
    d, h, shift = 3, 1.5, 0.8
    within = (1 + 2 / h**2) ** (-d / 2)
    exact = 2 * within * (1 - math.exp(-(d * shift**2) / (2 * (h**2 + 2))))
    distance, error = kernel_distance(normal(3000, d), normal(3000, d, seed=1) + shift, kernel="rbf", bandwidth=h)
    assert error < 0.1 * exact
    assert (distance - exact).abs() < 3 * error


def test_of_several_blocks_is_that_of_the_whole_matrix_of_pairs():
    x, y = normal(ROWS + 76, 3), normal(ROWS + 6, 3, seed=1)
    n, m = len(x), len(y)
    own_x, own_y, cross = ((a @ b.T / 3 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (own_x, own_y)]
    assert_close(kernel_distance(x, y).distance, sum(within) - 2 * cross.sum() / (n * m), rtol=1e-9, atol=0)


def test_rbf_distance_is_unchanged_by_a_translation_far_from_the_origin():
    x, y = normal(200, 6), 0.3 + normal(200, 6, seed=1)
    near, far = (kernel_distance(x + s, y + s, kernel="rbf", bandwidth=2.0) for s in (0, 1e4))
    assert_close(far, near, rtol=1e-8, atol=1e-12)


def test_of_constant_features_is_the_kernels_distance_of_two_points():
    one, two = torch.ones(5, 2), torch.ones(4, 2)
    assert kernel_distance(one, two) == (0, 0)
    # k(0, 0) + k(2, 2) - 2 k(0, 2) with k = (x.y / 2 + 1)^3
    assert kernel_distance(0 * one, 2 * two) == (1 + 125 - 2, 0)


def test_too_few_samples_and_kernels_that_are_none_raise():
    x = normal(5, 2)
    with pytest.raises(ValueError, match="samples"):
        kernel_distance(x[:2], x)
    with pytest.raises(ValueError, match="polynomial"):
        kernel_distance(x, x, kernel="linear")
    with pytest.raises(ValueError, match="bandwidth"):
        KernelDistance(kernel="rbf")
    with pytest.raises(ValueError, match="bandwidth"):
        kernel_distance(x, x, bandwidth=1.0)
    with pytest.raises(ValueError, match="gamma"):
        kernel_distance(x, x, gamma=0)
    with pytest.raises(ValueError, match=r"whole number >= 1, got 2.5"):
        kernel_distance(x, x, degree=2.5)
