"""The direction of distribution matching: where it leads, what scales it, and the random skews of mixtures."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.objectives import (
    DiffInstruct,
    FDistill,
    NoisedSamples,
    ScoreOfMixture,
    matching_direction,
    sample_normaliser,
    sigma_normaliser,
)
from fdistill.theory.divergences import JensenShannon, UniformlySkewedJensenShannon
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import X0Prediction


def exact_denoiser(mixture):
    return Denoiser(mixture, X0Prediction(VarianceExploding()))


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


def given(log_ratio, seed=0):
    """A batch of noised samples of which only the log ratio matters."""
    g = torch.Generator().manual_seed(seed)
    x, d_p, d_q = (torch.randn(len(log_ratio), 2, dtype=torch.float64, generator=g) for _ in range(3))
    level = torch.ones_like(log_ratio)
    return NoisedSamples(x.requires_grad_(), x, level, 1.0, None, d_p, d_q, log_ratio, generator=g)


@pytest.mark.parametrize("log_ratio", [-3.0, 0.0, 2.0])
def test_drawn_skews_have_the_weight_of_all_skews_for_a_mean(log_ratio):
    n = 100_000
    log_ratio = torch.full((n,), log_ratio, dtype=torch.float64)
    drawn = ScoreOfMixture().sample_weight(given(log_ratio))
    mean = UniformlySkewedJensenShannon().weight(log_ratio[:1]).item()
    assert drawn.mean().item() == pytest.approx(mean, abs=5 * drawn.std().item() / math.sqrt(n) + 1e-12)


def test_skews_are_drawn_from_the_generator_that_is_given():
    log_ratio = torch.linspace(-2, 2, 50, dtype=torch.float64)
    once, again, otherwise = (ScoreOfMixture().sample_weight(given(log_ratio, seed)) for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, otherwise)


def test_skews_stay_between_their_ends():
    log_ratio = torch.full((1000,), 2.0, dtype=torch.float64)
    weight = ScoreOfMixture(0.3, 0.6).sample_weight(given(log_ratio))
    r = math.exp(2.0)
    assert r / (0.6 * r + 0.4) <= weight.min() < weight.max() <= r / (0.3 * r + 0.7)


def test_value_of_the_loss_is_half_the_mean_square_of_its_gradient():
    at = given(torch.zeros(5, dtype=torch.float64))
    value = DiffInstruct().loss(at).terms["student"].value
    (gradient,) = torch.autograd.grad(value.sum(), at.x)
    direction = 2 * gradient  # per entry, of 2
    assert_close(value, direction.square().mean(1) / 2)


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_scale_of_the_weight_does_not_matter_since_its_mean_over_the_batch_is_one(size):
    class Scaled(JensenShannon):
        def weight(self, log_ratio):
            return size * super().weight(log_ratio)

    at = given(torch.linspace(-2, 2, 7, dtype=torch.float64))
    values = [FDistill(divergence).loss(at).terms["student"].value for divergence in (JensenShannon(), Scaled())]
    assert_close(*values)
