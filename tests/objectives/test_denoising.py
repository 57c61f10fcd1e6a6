"""Denoising score matching has the posterior mean as its minimiser, and EDM's weight makes the network's task even."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.objectives import denoising_loss
from fdistill.theory.loss_weights import edm_weight
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import EDM, X0Prediction

LEVELS = torch.logspace(-2, 2, 9, dtype=torch.float64)


def gaussian_quadrature():
    """Points (x_0, eps) and weights of a 1-D pair of standard normals, exact to 16 digits for what follows."""
    axis = torch.linspace(-9, 9, 181, dtype=torch.float64)
    first, second = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    weight = (-(first.square() + second.square()) / 2).exp()
    return first[:, None], second[:, None], weight / weight.sum()


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_gradient_at_the_posterior_mean_is_orthogonal_to_every_function_of_the_noisy_sample(sigma):
    z, eps, share = gaussian_quadrature()
    x_0 = 0.3 + 0.6 * z
    x_t, level = x_0 + sigma * eps, torch.full((len(z),), sigma, dtype=torch.float64)
    exact = Denoiser(GaussianMixture([[0.3]], [0.6]), X0Prediction(VarianceExploding()))
    for denoised, is_minimiser in ((exact(x_t, level), True), (exact(x_t, level) * 1.1, False)):
        denoised = denoised.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(denoising_loss(denoised, x_0, level, 0.6) * len(z), denoised)
        directions = torch.stack([torch.ones_like(x_t), x_t, x_t.sin(), x_t.square()])[..., 0]
        slopes = (share * gradient[:, 0] * directions).sum(dim=1) / (share * gradient[:, 0].abs()).sum()
        assert (slopes.abs().max() < 1e-6) == is_minimiser


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_loss_of_the_exact_denoiser_of_gaussian_data_is_one_at_every_noise_level(sigma):
    # edm_weight is one over the posterior variance, so the irreducible loss does not depend on sigma
    generator = torch.Generator().manual_seed(0)
    x_0 = 0.5 * torch.randn(4000, 8, generator=generator, dtype=torch.float64)
    level = torch.full((4000,), sigma, dtype=torch.float64)
    x_t = x_0 + sigma * torch.randn(4000, 8, generator=generator, dtype=torch.float64)
    exact = Denoiser(GaussianMixture([[0.0] * 8], [0.5]), X0Prediction(VarianceExploding()))
    assert denoising_loss(exact(x_t, level), x_0, level, 0.5).item() == pytest.approx(1, abs=5 * math.sqrt(2 / 32_000))


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_edm_weight_is_one_on_the_output_of_the_network(sigma_data):
    out = EDM(sigma_data).coefficients(LEVELS).out
    assert_close(out.square() * edm_weight(LEVELS, sigma_data), torch.ones_like(LEVELS))


def test_edm_weight_is_the_signal_to_noise_ratio_plus_a_constant():
    assert_close(edm_weight(LEVELS, 0.5), LEVELS**-2 + 0.5**-2)


def test_loss_trains_the_denoiser_and_leaves_the_samples_alone():
    denoised, x_0 = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    denoising_loss(denoised, x_0, torch.ones(2), 0.5).backward()
    assert (denoised.grad < 0).all()  # descending moves D up, towards x_0
    assert x_0.grad is None


def test_loss_of_bfloat16_denoisers_is_float32():
    denoised = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert denoising_loss(denoised, denoised, torch.ones(2), 0.5).dtype == torch.float32
