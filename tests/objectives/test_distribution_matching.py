"""The student's direction is the exact gradient of the f-divergence between diffused teacher and student."""

import inspect
import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.denoiser import Denoiser
from fdistill.divergences import AlphaDivergence, FDivergence, SkewedJensenShannon
from fdistill.networks import GaussianMixture
from fdistill.objectives import matching_direction, sample_normaliser, sigma_normaliser
from fdistill.paths import VarianceExploding
from fdistill.preconditioning import X0Prediction

TEACHER = GaussianMixture([[-0.9], [0.8]], [0.5, 0.6], [0.35, 0.65])
MEAN, STD = 0.25, 0.65  # near the variance of each mode: Neyman needs var q_t < 2 var p_t, Pearson var p_t < 2 var q_t


def family():
    found = [cls() for cls in concrete_subclasses(FDivergence)]
    found += [AlphaDivergence(alpha) for alpha in (-1.0, 0.0, 1.0, 2.0)]
    return found + [SkewedJensenShannon(skew) for skew in (0.0, 0.3, 1.0)]


def concrete_subclasses(cls):
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    return [sub for sub in below if sub.__module__.startswith("fdistill") and not inspect.isabstract(sub)]


def name(divergence):
    return "-".join([type(divergence).__name__, *map(str, divergence.spec()["init_args"].values())])


def exact_denoiser(mixture):
    return Denoiser(mixture, X0Prediction(VarianceExploding()))


def gradient_of_the_divergence(divergence, sigma):
    """d/d(mean, std) of int q_t f(p_t/q_t) dx, by autograd through a fine grid."""
    theta = torch.tensor([MEAN, STD], dtype=torch.float64, requires_grad=True)
    spread = math.hypot(STD, sigma)
    x = MEAN + spread * torch.linspace(-14, 14, 4001, dtype=torch.float64)
    variance = theta[1].square() + sigma**2
    log_q = -(x - theta[0]).square() / (2 * variance) - (2 * math.pi * variance).log() / 2
    log_p = TEACHER.log_prob(x[:, None], torch.full_like(x, sigma))
    value = torch.trapezoid(log_q.exp() * divergence.f((log_p - log_q).exp()), x)
    (gradient,) = torch.autograd.grad(value, theta)
    return gradient


def gradient_of_the_student(divergence, sigma):
    """E[<direction, dx/d(mean, std)>] for x = mean + std z, x_t = x + sigma eps, by quadrature over z and eps."""
    axis = torch.linspace(-11, 11, 221, dtype=torch.float64)
    z, eps = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    share = (-(z.square() + eps.square()) / 2).exp()
    share = share / share.sum()
    x_t, level = (MEAN + STD * z + sigma * eps)[:, None], torch.full_like(z, sigma)
    student = GaussianMixture([[MEAN]], [STD])
    log_ratio = TEACHER.log_prob(x_t, level) - student.log_prob(x_t, level)
    direction = matching_direction(
        exact_denoiser(TEACHER)(x_t, level),
        exact_denoiser(student)(x_t, level),
        divergence.weight(log_ratio),
        level**-2,
    )[:, 0]
    return torch.stack([(share * direction).sum(), (share * direction * z).sum()])


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("divergence", family(), ids=name)
def test_direction_is_the_gradient_of_the_divergence(divergence, sigma):
    assert_close(
        gradient_of_the_student(divergence, sigma), gradient_of_the_divergence(divergence, sigma), rtol=1e-9, atol=0
    )


def test_descent_carries_a_student_to_the_teacher():
    teacher = GaussianMixture([[1.5, -1.0]], [0.4])
    z = torch.randn(256, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, level = torch.zeros(2, dtype=torch.float64), torch.full((256,), 0.7, dtype=torch.float64)
    for _ in range(60):
        student = GaussianMixture([mean.tolist()], [0.4])
        x_t = mean + 0.4 * z
        direction = matching_direction(
            exact_denoiser(teacher)(x_t, level), exact_denoiser(student)(x_t, level), 1.0, level**-2
        )
        mean = mean - 0.3 * direction.mean(dim=0)
    assert_close(mean, teacher.means[0], rtol=0, atol=1e-6)


def test_direction_vanishes_where_teacher_and_fake_score_agree():
    denoised = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert not matching_direction(denoised, denoised, torch.ones(4), torch.ones(4)).any()


def test_direction_scales_each_sample_by_its_own_weight_and_carries_no_gradient():
    teacher, fake = torch.zeros(3, 2, 2, requires_grad=True), torch.ones(3, 2, 2, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    direction = matching_direction(teacher, fake, weight, torch.tensor([1.0, 0.5, 0.25]))
    assert_close(direction, torch.ones(3, 2, 2))
    assert not direction.requires_grad


def test_direction_of_bfloat16_denoisers_is_bfloat16():
    teacher, fake = torch.zeros(2, 3, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.bfloat16)
    assert matching_direction(teacher, fake, torch.ones(2), torch.ones(2)).dtype == torch.bfloat16


def test_sample_normaliser_makes_the_mean_absolute_teacher_residual_one():
    g = torch.Generator().manual_seed(0)
    x, denoised = (torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=g) for _ in range(2))
    normalised = sample_normaliser(x, denoised)[:, None, None, None] * (x - denoised)
    assert_close(normalised.abs().mean(dim=(1, 2, 3)), torch.ones(5, dtype=torch.float64))


def test_sample_normaliser_makes_the_direction_independent_of_the_scale_of_the_data():
    g = torch.Generator().manual_seed(0)
    x, teacher, fake = (torch.randn(5, 8, dtype=torch.float64, generator=g) for _ in range(3))
    directions = [
        matching_direction(c * teacher, c * fake, 1.0, sample_normaliser(c * x, c * teacher)) for c in (1.0, 30.0)
    ]
    assert_close(directions[0], directions[1])


def test_sample_normaliser_stays_finite_where_the_student_is_the_teacher():
    assert sample_normaliser(torch.ones(2, 3), torch.ones(2, 3)).isfinite().all()


@pytest.mark.parametrize("sigma_data", [0.3, 1.0])
def test_sigma_normaliser_is_one_over_the_posterior_deviation_of_gaussian_data(sigma_data):
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    x = torch.zeros(9, 1, dtype=torch.float64, requires_grad=True)
    denoised = exact_denoiser(GaussianMixture([[0.0]], [sigma_data]))(x, sigma)
    (slope,) = torch.autograd.grad(denoised.sum(), x)  # Var[x_0|x] = sigma^2 dD/dx (second-order Tweedie)
    assert_close(sigma_normaliser(sigma, sigma_data), (sigma.square() * slope[:, 0]).rsqrt())
