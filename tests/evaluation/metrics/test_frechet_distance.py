"""Truths about the Frechet distance."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.metrics import FrechetDistance, frechet_distance, gaussian_frechet_distance
from fdistill.evaluation.metrics.blocks import ROWS


def features(n=300, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix


def rotation(d, seed=0):
    matrix = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix).Q


def test_of_a_set_to_itself_is_zero():
    x = features()
    assert frechet_distance(x, x) < 1e-10
    assert frechet_distance(x, x[torch.randperm(len(x))]) < 1e-10


def test_of_a_translation_is_its_squared_length():
    x, shift = features(), torch.tensor([3.0, -1, 0, 2, 0, 0.5], dtype=torch.float64)
    assert_close(frechet_distance(x + shift, x), shift.square().sum(), rtol=1e-9, atol=0)


def test_of_commuting_gaussians_is_the_distance_of_their_standard_deviations():
    generator = torch.Generator().manual_seed(1)
    mu1, mu2, std1, std2 = torch.rand(4, 5, generator=generator, dtype=torch.float64)
    basis = rotation(5)
    cov1, cov2 = (basis * std1**2) @ basis.T, (basis * std2**2) @ basis.T
    exact = (mu1 - mu2).square().sum() + (std1 - std2).square().sum()
    assert_close(gaussian_frechet_distance(mu1, cov1, mu2, cov2), exact, rtol=1e-9, atol=0)


def test_of_a_shrunk_standard_gaussian_is_the_known_value():
    # |m|^2 + d (1 - s)^2 with d = 16, |m|^2 = 4, s = 0.5
    zero, eye = torch.zeros(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64)
    value = gaussian_frechet_distance(zero, eye, torch.full_like(zero, 0.5), 0.25 * eye)
    assert value.item() == pytest.approx(8.0, rel=1e-12)


def test_of_non_commuting_gaussians_agrees_with_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = features(seed=2), features(seed=3)
    cov_x, cov_y = torch.cov(x.T), torch.cov(y.T)
    root = torch.from_numpy(linalg.sqrtm((cov_x @ cov_y).numpy()).real)
    exact = (x.mean(0) - y.mean(0)).square().sum() + (cov_x + cov_y - 2 * root).trace()
    assert_close(frechet_distance(x, y), exact, rtol=1e-9, atol=0)


def test_is_symmetric_and_unchanged_by_rotation():
    x, y, turn = features(seed=4), features(seed=5), rotation(6)
    assert_close(frechet_distance(x, y), frechet_distance(y, x), rtol=1e-10, atol=0)
    assert_close(frechet_distance(x @ turn, y @ turn), frechet_distance(x, y), rtol=1e-10, atol=0)


def test_of_singular_covariances_is_exact():
    # fewer samples than dimensions, and points on one line: all variance is along the first axis
    x = torch.zeros(8, 40, dtype=torch.float64)
    x[:, 0] = torch.linspace(-1, 1, 8)
    assert frechet_distance(x, x) < 1e-12
    assert_close(frechet_distance(3 * x, x), 4 * x[:, 0].var(), rtol=1e-10, atol=0)
    turn = rotation(40)
    assert_close(frechet_distance(3 * x @ turn, x @ turn), 4 * x[:, 0].var(), rtol=1e-6, atol=0)
    constant = torch.zeros(8, 40)
    assert_close(frechet_distance(constant, x), x[:, 0].var(), rtol=1e-10, atol=0)


def streamed(generated, real, batch):
    metric = FrechetDistance()
    for side, is_real in ((real, True), (generated, False)):
        for rows in side.split(batch):
            metric.update(rows, real=is_real)
    return metric


def test_streamed_agrees_with_the_covariances_of_torch():
    x, y = features(n=2 * ROWS + 3, seed=4), features(n=ROWS, seed=5)
    exact = gaussian_frechet_distance(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))
    assert_close(frechet_distance(x, y), exact, rtol=1e-10, atol=0)
    assert_close(streamed(x, y, 999).compute(), exact, rtol=1e-10, atol=0)


def test_features_far_from_the_origin_lose_no_digits():
    x, y = features(n=2000, seed=6), 1.3 * features(n=2000, seed=7)
    near, far = frechet_distance(x, y), streamed(x + 1e4, y + 1e4, 50).compute()
    assert_close(far, near, rtol=1e-9, atol=0)
    # sums of squares would leave 1e8 eps = 1e-8 of the variance, in float32 nothing at all
    single = [(side + 1e4).float() for side in (x, y)]
    assert_close(
        streamed(*single, 50).compute(), frechet_distance(*(s.double() - 1e4 for s in single)), rtol=1e-9, atol=0
    )


def test_a_covariance_that_is_not_symmetric_raises():
    zero, eye = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match="symmetric"):
        gaussian_frechet_distance(zero, torch.tensor([[1.0, 1.0], [0.0, 1.0]]), zero, eye)
