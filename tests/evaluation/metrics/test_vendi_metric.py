"""Truths about the metric class VendiScore: it streams, adds over batches and ranks, and its ratio knows its n."""

import math
import sys

import pytest
import torch
from torch.testing import assert_close

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.random_fourier import fourier_features, fourier_frequencies
from fdistill.evaluation.metrics.vendi_score import VendiScore, per_class_vendi_score, vendi_score

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


@pytest.mark.parametrize("settings", [{}, FOURIER])
def test_a_stream_is_held_in_one_matrix_of_float64_whatever_comes_in(settings):
    metric = updated(VendiScore(relative=True, **settings), rows().float(), rows(seed=1).bfloat16(), parts=8)
    side = 32 if settings else 5
    for state in (metric.generated, metric.real):
        assert [(part.dtype, tuple(part.shape)) for part in state] == [(torch.float64, (1, 1 + side**2))]


@pytest.mark.parametrize("settings", SETTINGS)
def test_states_of_two_ranks_below_each_other_are_those_of_one(settings):
    whole = updated(VendiScore(relative=True, **settings), rows(), rows(seed=1))
    first = updated(VendiScore(relative=True, **settings), rows()[:10], rows(seed=1)[:25])
    second = updated(VendiScore(relative=True, **settings), rows()[10:], rows(seed=1)[25:])
    for name in ("generated", "real"):
        setattr(first, name, [torch.cat([first.rows(name), second.rows(name)])])
    assert_close(first.compute(), whole.compute(), rtol=1e-10, atol=0)


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


@pytest.mark.parametrize("settings", [{}, RBF, FOURIER])
def test_mean_over_classes_equals_the_pure_function(settings):
    labels = torch.arange(40) % 3
    metric = VendiScore(num_classes=4, **settings)
    for features, part in zip(rows().chunk(3), labels.chunk(3), strict=True):
        metric.update(features, False, part)
    features, kernel = rows(), settings
    if settings == FOURIER:
        features, kernel = fourier_features(rows(), fourier_frequencies(5, 2.0, 16, generator_for(0, 5))), {}
    assert_close(metric.compute(), per_class_vendi_score(features, labels, 4, **kernel), rtol=1e-10, atol=0)


def test_ratio_of_means_over_classes_sees_classes_collapse_that_the_plain_ratio_does_not():
    labels = torch.arange(60) % 3
    centres = 20 * torch.eye(3, dtype=torch.float64)[labels]
    real = centres + rows(60, 3)
    plain, by_class = VendiScore(relative=True), VendiScore(relative=True, num_classes=3)
    for metric, extra in ((plain, ()), (by_class, (labels,))):
        metric.update(centres, False, *extra)
        metric.update(real, True, *extra)
    assert plain.compute() > 0.98
    assert by_class.compute() < 0.98
    assert_close(by_class.compute(), 1 / per_class_vendi_score(real, labels, 3), rtol=1e-9, atol=0)


def test_ratio_over_classes_asks_for_equal_numbers_in_every_class():
    metric = VendiScore(relative=True, num_classes=2)
    metric.update(rows(4), False, torch.tensor([0, 0, 1, 1]))
    metric.update(rows(4), True, torch.tensor([0, 1, 1, 1]))
    with pytest.raises(ValueError, match="generated"):
        metric.compute()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("keep", [True, False])
def test_reset_forgets_generated_samples_and_real_ones_unless_they_are_kept(settings, keep):
    metric = VendiScore(relative=True, reset_real_features=not keep, **settings)
    updated(metric, rows(seed=2), rows(seed=1)).reset()
    updated(metric, rows(), None if keep else rows(seed=1))
    expected = updated(VendiScore(relative=True, **settings), rows(), rows(seed=1)).compute()
    assert_close(metric.compute(), expected, rtol=1e-12, atol=0)
    metric.reset()
    if keep:
        with pytest.raises(ValueError, match="features"):
            metric.update(rows(3, 6), False)
    else:
        metric.update(rows(3, 5 if "centre" in settings else 6), False)


def test_one_sample_and_constant_features_score_one():
    assert vendi_score_of(rows(1), {}).item() == pytest.approx(1, rel=1e-12)
    assert vendi_score_of(torch.ones(30, 4), {}).item() == pytest.approx(1, rel=1e-9)


def test_a_score_begun_in_inference_mode_goes_on_outside():
    metric = VendiScore()
    with torch.inference_mode():
        metric.update(rows()[:20], False)
    metric.update(rows()[20:], False)
    assert_close(metric.compute(), vendi_score(rows()), rtol=1e-10, atol=0)


def test_a_refused_batch_leaves_nothing_behind():
    metric = updated(VendiScore(), rows())
    for broken in (torch.cat([rows(2000), torch.zeros(1, 5)]), rows() * math.nan, rows(3, 6)):
        with pytest.raises(ValueError, match=r"rows|finite|features"):
            metric.update(broken, False)
    assert metric.compute() == vendi_score_of(rows(), {})
    fresh = VendiScore()
    with pytest.raises(ValueError, match="rows"):
        fresh.update(torch.zeros(2, 6), False)
    assert updated(fresh, rows()).compute() == metric.compute()


def test_is_logged_as_score_or_ratio():
    assert VendiScore().label == "vendi_score"
    assert VendiScore(relative=True).label == "vendi_ratio"


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


def test_compute_without_samples_labels_without_classes_and_wrong_centres_raise():
    with pytest.raises(ValueError, match="generated"):
        VendiScore().compute()
    with pytest.raises(ValueError, match="real"):
        updated(VendiScore(relative=True), rows()).compute()
    with pytest.raises(ValueError, match="num_classes"):
        VendiScore().update(rows(), False, torch.zeros(40, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_classes"):
        VendiScore(num_classes=3).update(rows(), False)
    with pytest.raises(ValueError, match=r"expected \[5\], got \[3\]"):
        VendiScore(centre=torch.zeros(3)).update(rows(), False)


def test_features_too_wide_for_their_matrix_raise(monkeypatch):
    monkeypatch.setattr(sys.modules["fdistill.evaluation.metrics.vendi_spectrum"], "LARGEST_SIDE", 4)
    with pytest.raises(ValueError, match="rows"):
        VendiScore().update(rows(), False)
