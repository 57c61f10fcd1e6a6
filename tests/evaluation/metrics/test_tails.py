"""Truths about tails along random directions."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.metrics import TailDiagnostics, tail_diagnostics
from fdistill.evaluation.metrics.tails import DIRECTIONS


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quantiles(n):
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def laplace(*shape, seed=0):
    u = torch.rand(*shape, generator=generator(seed), dtype=torch.float64) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs())


@pytest.mark.parametrize(
    ("inverse_cdf", "kurtosis"),
    [
        (lambda u: u, -1.2),
        (lambda u: torch.special.ndtri(u), 0.0),
        (lambda u: -(u - 0.5).sign() * torch.log1p(-2 * (u - 0.5).abs()), 3.0),
        (lambda u: (u / (1 - u)).log(), 1.2),
        (lambda u: (u > 0.5).double(), -2.0),
    ],
    ids=["uniform", "Gaussian", "Laplace", "logistic", "two points"],
)
def test_on_a_line_it_is_the_excess_kurtosis_of_the_law(inverse_cdf, kurtosis):
    x = inverse_cdf(quantiles(200_000))[:, None]
    assert tail_diagnostics(x, 1, generator()).excess_kurtosis.item() == pytest.approx(kurtosis, abs=0.02)


def test_farthest_projection_of_a_gaussian_tends_to_one_and_of_a_laplace_law_does_not():
    gaussian, heavy = (tail_diagnostics(draw(100_000, 1), 1, generator()).projection for draw in (normal, laplace))
    assert 0.8 < gaussian < 1.1  # sqrt(2 ln n) less its (ln ln n) correction
    assert heavy > 1.4  # ln n / sqrt 2 over sqrt(2 ln n) is sqrt(ln n) / 2 = 1.7
    uniform = tail_diagnostics(quantiles(100_000)[:, None], 1, generator()).projection
    assert uniform.item() == pytest.approx(math.sqrt(3) / math.sqrt(2 * math.log(100_000)), rel=1e-4)


def test_of_an_axis_of_laplace_law_is_between_the_gaussian_value_and_three():
    # a projection w has excess kurtosis 3 sum w^4, in the plane between 3/2 and 3 and near 3 along the axes
    x = laplace(50_000, 2)
    largest = tail_diagnostics(x, 60, generator()).excess_kurtosis
    assert largest.item() == pytest.approx(3.0, abs=0.3)
    assert tail_diagnostics(normal(50_000, 2), 60, generator()).excess_kurtosis.item() == pytest.approx(0, abs=0.1)


def test_location_and_scale_change_nothing():
    x = laplace(500, 3)
    assert_close(
        tail_diagnostics(7 * x + 1e3, 20, generator()), tail_diagnostics(x, 20, generator()), rtol=1e-8, atol=0
    )


def test_truncating_the_tails_lowers_both_numbers():
    x = normal(5000, 4)
    whole, cut = (tail_diagnostics(side, 50, generator()) for side in (x, x[x.norm(dim=1) < 2.5]))
    assert cut.excess_kurtosis < whole.excess_kurtosis
    assert cut.projection < whole.projection


def test_more_directions_never_lower_the_largest_value_and_the_same_seed_repeats_them():
    x = laplace(300, 5)
    few, more, many = (tail_diagnostics(x, n, generator()) for n in (1, DIRECTIONS + 1, 3 * DIRECTIONS))
    assert few.excess_kurtosis <= more.excess_kurtosis <= many.excess_kurtosis
    assert few.projection <= more.projection <= many.projection
    state = torch.random.get_rng_state()
    assert tail_diagnostics(x, DIRECTIONS + 1, generator()) == more
    assert torch.equal(torch.random.get_rng_state(), state)


def test_metric_compares_equally_many_samples_along_the_same_directions():
    x = laplace(400, 3)
    metric = TailDiagnostics(num_directions=10)
    for batch in x.split(37):
        metric.update(batch, real=False)
        metric.update(batch, real=True)
    values = metric.compute()
    assert list(values) == ["excess_kurtosis", "projection", "real_excess_kurtosis", "real_projection"]
    assert values["excess_kurtosis"] == values["real_excess_kurtosis"] > 1
    assert values["projection"] == values["real_projection"]
    metric.update(x[:1], real=True)
    with pytest.raises(ValueError, match="generated"):
        metric.compute()


def test_broken_features_raise():
    with pytest.raises(ValueError, match="features"):
        tail_diagnostics(torch.full((1001, 3), 0.1), 5, generator())
    with pytest.raises(ValueError, match="features"):
        tail_diagnostics(torch.zeros(5, 3), 5, generator())
    with pytest.raises(ValueError, match="samples"):
        tail_diagnostics(torch.zeros(1, 3), 5, generator())
    with pytest.raises(ValueError, match="num_directions"):
        tail_diagnostics(normal(5, 3), 0, generator())
    with pytest.raises(ValueError, match="got 1 of 2"):
        tail_diagnostics(torch.tensor([[0.0], [math.nan]]), 5, generator())
