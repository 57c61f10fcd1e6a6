"""R1 is the squared slope of the logit at the noised sample, and its approximation tends to it."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import DiffusersUNet, GaussianMixture, SmallUNet
from fdistill.objectives.log_ratio import ExactRatio, FeatureDiscriminator, gradient_penalty
from fdistill.theory.preconditioning import EDM


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def smooth_logit(x):
    """Any smooth function of each sample of two entries."""
    return (x @ normal(2, 8, seed=1)).tanh() @ normal(8, seed=2)


def test_penalty_of_two_gaussians_is_its_closed_form_at_every_noise_level():
    d, sigma = 1.5, torch.logspace(-2, 2, 9, dtype=torch.float64)
    ratio = ExactRatio(GaussianMixture([[d, 0.0]], [1.0]), GaussianMixture([[0.0, 0.0]], [1.0]))
    penalty = gradient_penalty(lambda x: ratio(x, sigma), normal(9, 2), sigma, sigma_data=1.0)
    assert_close(penalty, d**2 / (1 + sigma.square()))  # the slope is d / (1 + sigma^2) everywhere


@pytest.mark.parametrize("step", [0.0, 0.3])
def test_penalty_does_not_depend_on_the_unit_of_length(step):
    x_t, sigma = normal(5, 2), torch.linspace(0.1, 3, 5, dtype=torch.float64)
    here = gradient_penalty(smooth_logit, x_t, sigma, 0.5, generator(), step)
    there = gradient_penalty(lambda x: smooth_logit(x / 40), 40 * x_t, 40 * sigma, 40 * 0.5, generator(), step)
    assert_close(there, here)


@pytest.mark.parametrize("network", [SmallUNet, DiffusersUNet])
def test_penalty_trains_a_discriminator_through_the_frozen_encoder_of_a_teacher(network):
    torch.manual_seed(0)
    teacher = Denoiser(network(8, 1, (8, 16)), EDM(0.5)).double().requires_grad_(False).eval()
    discriminator = FeatureDiscriminator(teacher.network.feature_channels, width=4).double()
    x_t, sigma = normal(2, 1, 8, 8).requires_grad_(), torch.tensor([0.2, 2.0], dtype=torch.float64)

    def penalty():
        return gradient_penalty(lambda x: discriminator(teacher.encode(x, sigma).features), x_t, sigma, 0.5).sum()

    penalty().backward()
    assert x_t.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    weight, h = discriminator.heads[0].convolution.weight, 1e-6
    direction = normal(*weight.shape, seed=5)
    with torch.no_grad():
        weight += h * direction
        above = penalty()
        weight -= 2 * h * direction
        below = penalty()
    assert_close((weight.grad * direction).sum(), (above - below) / (2 * h), rtol=1e-5, atol=0)


def test_approximation_of_a_linear_logit_is_the_same_for_every_step_and_right_on_average():
    n, slope = 40_000, torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64)
    x_t, sigma = normal(n, 3), torch.full((n,), 0.8, dtype=torch.float64)
    small, large = (gradient_penalty(lambda x: x @ slope, x_t, sigma, 0.5, generator(), step) for step in (1e-3, 2.0))
    exact = gradient_penalty(lambda x: x @ slope, x_t, sigma, 0.5)
    assert_close(small, large, rtol=1e-8, atol=1e-8)
    assert abs(large.mean() - exact.mean()) < 4 * large.std() / n**0.5


def test_mean_of_the_approximation_exceeds_the_exact_penalty_by_the_curvature_and_the_step_squared():
    n, place = 200_000, torch.tensor([0.3, -0.2], dtype=torch.float64)
    bend = torch.tensor([[1.0, 0.4], [0.4, -0.6]], dtype=torch.float64)
    x_t, sigma = place.expand(n, 2), torch.full((n,), 0.6, dtype=torch.float64)  # scale 1 with sigma_data .8

    def logit(x):
        return x.sum(1) + ((x @ bend) * x).sum(1) / 2

    exact = gradient_penalty(logit, x_t[:1], sigma[:1], 0.8)
    curvature = (bend.trace() ** 2 + 2 * bend.square().sum()) / 4  # E (n' A n)^2 / 4
    for step in (0.25, 0.5, 1.0):
        found = gradient_penalty(logit, x_t, sigma, 0.8, generator(), step)
        assert abs(found.mean() - exact - step**2 * curvature) < 4 * found.std() / n**0.5


def test_approximation_tends_to_the_slope_along_its_direction_with_the_first_order_of_the_step():
    x_t, sigma = normal(200, 2), torch.full((200,), 0.6, dtype=torch.float64)
    values = [gradient_penalty(smooth_logit, x_t, sigma, 0.8, generator(), step) for step in (0.02, 0.01, 0.005, 1e-6)]
    x = x_t.clone().requires_grad_()
    (slope,) = torch.autograd.grad(smooth_logit(x).sum(), x)
    limit = (slope * normal(200, 2)).sum(1).square()  # the directions of that generator
    assert_close(values[-1], limit, rtol=1e-4, atol=1e-4)
    errors = torch.stack([(value - limit).abs().mean() for value in values[:-1]])
    assert ((errors[:-1] / errors[1:]).log2() - 1).abs().max() < 0.1


@pytest.mark.parametrize("step", [0.0, 0.1])
def test_penalty_can_be_looked_at_without_gradient(step):
    x_t, sigma = normal(4, 2), torch.ones(4, dtype=torch.float64)
    with torch.no_grad():
        seen = gradient_penalty(smooth_logit, x_t, sigma, 0.5, generator(), step)
    assert_close(seen, gradient_penalty(smooth_logit, x_t, sigma, 0.5, generator(), step).detach())


@pytest.mark.parametrize("step", [-0.1, float("inf"), float("nan")])
def test_steps_that_are_none_are_refused(step):
    with pytest.raises(ValueError, match="finite"):
        gradient_penalty(smooth_logit, normal(1, 2), torch.ones(1), 0.5, step=step)
