"""Truths about random Fourier features, and how far off the Vendi score they give is."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.random_fourier import fourier_features, fourier_frequencies
from fdistill.evaluation.metrics.vendi_score import vendi_score


def rows(n=60, d=3):
    return torch.randn(n, d, dtype=torch.float64, generator=generator_for(n, d))


def estimates(x, order, bandwidth, count, draws):
    seeds = (generator_for(5, seed) for seed in range(draws))
    frequencies = (fourier_frequencies(x.shape[1], bandwidth, count, generator) for generator in seeds)
    return torch.stack([vendi_score(fourier_features(x, drawn), order) for drawn in frequencies])


def test_rows_have_length_one():
    features = fourier_features(rows(), fourier_frequencies(3, 0.5, 10, generator_for(0)))
    assert features.shape == (60, 20)
    assert_close(features.norm(dim=1), torch.ones(60, dtype=torch.float64), rtol=1e-12, atol=0)


def test_products_are_the_gaussian_kernel_up_to_the_noise_of_their_number():
    features = fourier_features(rows(), fourier_frequencies(3, 0.7, 100_000, generator_for(0)))
    kernel = (-torch.cdist(rows(), rows()).square() / (2 * 0.7**2)).exp()
    assert (features @ features.T - kernel).abs().max() < 5 / math.sqrt(2 * 100_000)


def test_products_do_not_depend_on_where_the_origin_is():
    frequencies = fourier_frequencies(3, 1.0, 50, generator_for(0))
    here, there = (fourier_features(x, frequencies) for x in (rows(), rows() + 100))
    assert_close(there @ there.T, here @ here.T, rtol=0, atol=1e-11)


def test_order_two_is_off_by_the_formula_and_less_than_the_score_over_twice_the_frequencies():
    kernel = (-torch.cdist(rows(), rows()).square() / 2).exp()
    exact = vendi_score(rows(), 2.0, "rbf", 1.0)
    inverse = 1 / estimates(rows(), 2.0, 1.0, 32, draws=400)
    bias = (1 - kernel.square()).square().mean() / (2 * 32)
    assert abs(inverse.mean() - (1 / exact + bias)) < 4 * inverse.std() / math.sqrt(400)
    assert bias > 10 * inverse.std() / math.sqrt(400)  # so the line above would see it
    assert bias * exact < exact / (2 * 32)


@pytest.mark.parametrize("order", [2.0, 4.0, math.inf])
def test_orders_from_two_are_accurate(order):
    exact = vendi_score(rows(300, 8), order, "rbf", 2.0)
    assert_close(estimates(rows(300, 8), order, 2.0, 1000, draws=2).mean(), exact, rtol=0.03, atol=0)


def test_order_one_is_biased_low_and_never_above_twice_the_frequencies():
    x, exact = rows(300, 8), vendi_score(rows(300, 8), 1.0, "rbf", 2.0)
    found = [estimates(x, 1.0, 2.0, count, draws=5) for count in (10, 40, 160)]
    means = torch.stack([draws.log().mean().exp() for draws in found])
    assert (means.diff() > 0).all()
    assert (means < 0.9 * exact).all()
    assert (found[0] <= 20).all()


def test_the_same_generator_draws_the_same_frequencies_and_the_global_state_stays():
    state = torch.get_rng_state()
    first, second = (fourier_frequencies(3, 1.0, 4, generator_for(7)) for _ in range(2))
    assert first.equal(second)
    assert torch.get_rng_state().equal(state)
    assert_close(fourier_frequencies(3, 2.0, 4, generator_for(7)), first / 2, rtol=0, atol=0)


def test_wrong_arguments_raise():
    with pytest.raises(ValueError, match="bandwidth"):
        fourier_frequencies(3, 0.0, 4, generator_for(0))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        fourier_frequencies(3, 1.0, 0, generator_for(0))
    frequencies = fourier_frequencies(3, 1.0, 4, generator_for(0))
    with pytest.raises(ValueError, match="rows"):
        fourier_features(rows(5, 2), frequencies)
    with pytest.raises(ValueError, match="finite"):
        fourier_features(rows() * math.nan, frequencies)
