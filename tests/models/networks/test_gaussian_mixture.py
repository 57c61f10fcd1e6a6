"""The analytic mixture is what it says: its denoiser, density and samples agree with quadrature and with each other."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.networks import GaussianMixture

MEANS_1D, STDS_1D, SHARES_1D = [[-1.2], [0.4], [1.5]], [0.3, 0.15, 0.5], [2.0, 1.0, 3.0]
MEANS_2D, STDS_2D, SHARES_2D = [[-1.0, 0.5], [0.8, -0.2]], [0.35, 0.5], [0.3, 0.7]


def clean_density(points, means, stds, shares):
    """Density of x_0 at points [n, d], from the definition."""
    total, dim = 0, points.shape[1]
    for mean, std, share in zip(means, stds, shares, strict=True):
        square = (points - torch.tensor(mean, dtype=torch.float64)).square().sum(dim=1)
        total = total + share / sum(shares) * (-square / (2 * std**2)).exp() / (2 * math.pi * std**2) ** (dim / 2)
    return total


def posterior_by_quadrature(x, sigma, grid, cell, mixture):
    """E[x_0 | x] and ln p(x) of x = x_0 + sigma eps by sums over a grid of x_0."""
    dim = grid.shape[1]
    distance = (x[:, None] - grid).square().sum(dim=2)
    likelihood = (-distance / (2 * sigma**2)).exp() / (2 * math.pi * sigma**2) ** (dim / 2)
    joint = likelihood * clean_density(grid, *mixture) * cell
    evidence = joint.sum(dim=1)
    return joint @ grid / evidence[:, None], evidence.log()


@pytest.mark.parametrize("sigma", [0.2, 0.7, 3.0])
def test_denoiser_is_the_posterior_mean_in_one_dimension(sigma):
    mixture = (MEANS_1D, STDS_1D, SHARES_1D)
    grid = torch.linspace(-8, 8, 8001, dtype=torch.float64)[:, None]
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)[:, None]
    mean, log_evidence = posterior_by_quadrature(x, sigma, grid, 16 / 8000, mixture)
    network, level = GaussianMixture(*mixture), torch.full((41,), sigma, dtype=torch.float64)
    assert_close(network(x, level), mean, rtol=1e-9, atol=1e-10)
    assert_close(network.log_prob(x, level), log_evidence, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_denoiser_is_the_posterior_mean_in_two_dimensions(sigma):
    mixture = (MEANS_2D, STDS_2D, SHARES_2D)
    axis = torch.linspace(-5, 5, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    x = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, log_evidence = posterior_by_quadrature(x, sigma, grid, (10 / 300) ** 2, mixture)
    network, level = GaussianMixture(*mixture), torch.full((12,), sigma, dtype=torch.float64)
    assert_close(network(x, level), mean, rtol=1e-9, atol=1e-10)
    assert_close(network.log_prob(x, level), log_evidence, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0, 40.0])
def test_tweedie_score_is_the_gradient_of_the_log_density(sigma):
    network = GaussianMixture(MEANS_2D, STDS_2D, SHARES_2D)
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    level = torch.full((50,), sigma, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(network.log_prob(x, level).sum(), x)
    assert_close(network(x, level), x + sigma**2 * gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 5.0])
def test_density_integrates_to_one(sigma):
    x = torch.linspace(-60, 60, 40_001, dtype=torch.float64)
    density = GaussianMixture(MEANS_1D, STDS_1D, SHARES_1D).log_prob(x[:, None], torch.full_like(x, sigma)).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-9)


def test_denoiser_of_much_noise_is_the_mean_of_the_data_and_of_none_the_identity():
    network = GaussianMixture(MEANS_2D, STDS_2D, SHARES_2D)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor(SHARES_2D, dtype=torch.float64) @ torch.tensor(MEANS_2D, dtype=torch.float64)
    assert_close(network(x, torch.full((5,), 1e6, dtype=torch.float64)), mean.expand(5, 2), rtol=0, atol=1e-5)
    assert_close(network(x, torch.zeros(5, dtype=torch.float64)), x)


def test_points_without_spread_are_found_again_under_little_noise():
    network = GaussianMixture([[-1.0], [1.0]], [0.0, 0.0])
    x = torch.tensor([[-0.9], [0.8]], dtype=torch.float64)
    assert_close(network(x, torch.full((2,), 0.05).double()), torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
    # two points at +-1: the posterior mean is tanh(x / sigma^2)
    assert_close(network(x, torch.full((2,), 1.3).double()), (x / 1.3**2).tanh(), rtol=1e-6, atol=0)


def test_samples_have_the_mixture_mean_covariance_and_shares():
    n = 200_000
    samples, labels = GaussianMixture(MEANS_2D, STDS_2D, SHARES_2D).sample(n, torch.Generator().manual_seed(0))
    means, shares = torch.tensor(MEANS_2D).double(), torch.tensor(SHARES_2D).double()
    mean = shares @ means
    within = (shares * torch.tensor(STDS_2D).double().square()).sum() * torch.eye(2, dtype=torch.float64)
    covariance = within + torch.einsum("m,mi,mj->ij", shares, means - mean, means - mean)
    bound = 6 / math.sqrt(n)  # every coordinate and product has a standard deviation below 1.2
    assert_close(samples.double().mean(dim=0), mean, rtol=0, atol=bound)
    assert_close(samples.double().T.cov(), covariance, rtol=0, atol=bound)
    assert_close(torch.bincount(labels).double() / n, shares, rtol=0, atol=bound)
    for component in range(2):
        here = samples[labels == component].double()
        assert_close(here.mean(dim=0), means[component], rtol=0, atol=2 * bound)


def test_weights_count_relative_to_each_other():
    x, level = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], torch.full((9,), 0.5, dtype=torch.float64)
    even, doubled = (GaussianMixture([[-1.0], [1.0]], [0.3, 0.3], w) for w in (None, [2.0, 2.0]))
    assert_close(even(x, level), doubled(x, level))


def test_far_away_samples_do_not_overflow():
    network = GaussianMixture(MEANS_2D, STDS_2D, SHARES_2D)
    x = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert network(x, torch.full((2,), 0.01)).isfinite().all()
    assert network.log_prob(x, torch.full((2,), 0.01)).isfinite().all()


@pytest.mark.parametrize(
    "arguments",
    [
        ([[0.0]], [1.0, 1.0]),
        ([0.0, 1.0], [1.0, 1.0]),
        ([[0.0]], [-1.0]),
        ([[0.0], [1.0]], [1.0, 1.0], [1.0, 0.0]),
        ([[0.0]], [1.0], [0.5, 0.5]),
    ],
    ids=["stds", "means", "negative std", "zero weight", "weights"],
)
def test_mixtures_that_are_none_are_refused(arguments):
    with pytest.raises(ValueError, match=r"mixture|stds"):
        GaussianMixture(*arguments)
