"""Truths about the metric class VendiScore: it streams, adds over batches and ranks, and its ratio knows its n."""

import math
import sys

import pytest
import torch
from torch.testing import assert_close

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.random_fourier import fourier_features, fourier_frequencies
from fdistill.evaluation.metrics.vendi_score import VendiScore, vendi_score

ORDERS = [0.5, 1.0, 2.0, math.inf]
RBF = {"kernel": "rbf", "bandwidth": 2.0}
FOURIER = {**RBF, "random_features": 16}
SETTINGS = [{}, {"centre": torch.full((5,), 0.3)}, RBF, FOURIER]


def rows(n=40, d=5, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=generator_for(seed, n, d))


def updated(metric, generated=None, real=None, parts=1):
    for features, is_real in ((generated, False), (real, True)):
        for part in () if features is None else features.chunk(parts):
            metric.update(part, is_real)
    return metric


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("settings", SETTINGS[:3])
def test_in_any_batches_equals_the_pure_function(order, settings):
    expected = vendi_score(rows(), order, **settings)
    for parts in (1, 7, 40):
        assert_close(
            updated(VendiScore(order, **settings), rows(), parts=parts).compute(), expected, rtol=1e-10, atol=0
        )


@pytest.mark.parametrize("order", ORDERS)
def test_with_random_features_equals_the_cosine_score_of_fourier_features(order):
    frequencies = fourier_frequencies(5, 2.0, 16, generator_for(3, 5))
    expected = vendi_score(fourier_features(rows(), frequencies), order)
    metric = updated(VendiScore(order, seed=3, **FOURIER), rows(), parts=7)
    assert_close(metric.compute(), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("settings", SETTINGS)
def test_ratio_is_the_quotient_of_the_scores_and_one_for_the_reference_itself(settings):
    scores = [updated(VendiScore(**settings), x).compute() for x in (rows(), rows(seed=1))]
    ratio = updated(VendiScore(relative=True, **settings), rows(), rows(seed=1)).compute()
    assert_close(ratio, scores[0] / scores[1], rtol=1e-10, atol=0)
    assert_close(
        updated(VendiScore(relative=True, **settings), rows(), rows()).compute(), ratio.new_ones(()), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("settings", [{}, RBF, FOURIER])
def test_ratio_falls_as_samples_collapse_onto_fewer_and_fewer(settings):
    real = rows(200)
    ratios = [
        updated(VendiScore(relative=True, **settings), real[torch.arange(200) % kept], real).compute()
        for kept in (200, 5, 3, 1)
    ]
    assert (torch.stack(ratios).diff() < 0).all()
    assert_close(ratios[-1], 1 / vendi_score_of(real, settings), rtol=1e-9, atol=0)


def vendi_score_of(features, settings):
    return updated(VendiScore(**settings), features).compute()


def test_a_ratio_of_different_numbers_of_samples_raises():
    metric = updated(VendiScore(relative=True), rows(39), rows(40))
    with pytest.raises(ValueError, match="generated"):
        metric.compute()
    assert updated(metric, rows(1)).compute() > 0


def test_real_samples_count_for_the_ratio_alone():
    metric = updated(VendiScore(), rows(), rows(seed=1))
    assert metric.compute() == vendi_score_of(rows(), {})
    assert metric.real == []


def test_one_sample_and_constant_features_score_one():
    assert vendi_score_of(rows(1), {}).item() == pytest.approx(1, rel=1e-12)
    assert vendi_score_of(torch.ones(30, 4), {}).item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": 0}, "order"),
        ({"kernel": "rbf"}, "bandwidth"),
        ({"bandwidth": 1.0}, "bandwidth"),
        ({"random_features": 10}, "kernel"),
        ({**RBF, "random_features": 0}, "random_features"),
    ],
)
def test_wrong_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        VendiScore(**settings)


def test_a_centre_of_another_width_raises():
    with pytest.raises(ValueError, match=r"expected \[5\], got \[3\]"):
        VendiScore(centre=torch.zeros(3)).update(rows(), False)


def test_features_too_wide_for_their_matrix_raise(monkeypatch):
    monkeypatch.setattr(sys.modules["fdistill.evaluation.metrics.vendi_spectrum"], "LARGEST_SIDE", 4)
    with pytest.raises(ValueError, match="rows"):
        VendiScore().update(rows(), False)
