"""The Gaussian step: equal to its formula on every path, to the posterior at eta 1, and exact where D is known."""

import math

import pytest
import torch
from sampler_cases import response
from torch.testing import assert_close

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.sampling import DDIM, GDDIM, Euler, Renoising
from fdistill.theory.paths import RectifiedFlow, VarianceExploding, VPCosine, VPLinear
from fdistill.theory.preconditioning import X0Prediction

ETAS = (0.0, 0.5, 1.0, 1.2, 2.0, 7.0)
PAIRS = [(20.0, 9.0), (3.0, 2.9), (1.0, 0.2), (0.1, 0.001)]


def numbers(seed, n=8):
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments(sampler, x, denoised, here, there):
    """Mean and standard deviation of the step from x where the denoised sample is known."""
    mean = sampler.step(lambda *_: denoised, x, here, there, lambda: torch.zeros_like(x))
    ahead = sampler.step(lambda *_: denoised, x, here, there, lambda: torch.ones_like(x))
    return mean, (ahead - mean).mean().item()


@pytest.mark.parametrize(
    "path", [VPLinear(), VPCosine(), VarianceExploding(), RectifiedFlow()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("times", [(0.9, 0.7), (0.5, 0.48), (0.2, 0.01)])
def test_on_every_path_it_is_the_step_in_the_paths_own_coordinates(path, eta, times):
    """x_t = alpha x: mu = alpha' x_0 + sigma' rho eps, std = sigma' sqrt(1 - rho^2) in those (arXiv 2510.10767)."""
    t, t_next = (torch.tensor(time, dtype=torch.float64) for time in times)
    (alpha, sigma), (alpha_next, sigma_next) = ((path.alpha(at), path.sigma(at)) for at in (t, t_next))
    x_t, x_0, z = numbers(0), numbers(1), numbers(2)
    eps = (x_t - alpha * x_0) / sigma
    rho = ((sigma_next / alpha_next) / (sigma / alpha)) ** (eta**2)
    native = alpha_next * x_0 + sigma_next * rho * eps + sigma_next * (1 - rho.square()).sqrt() * z
    here, there = float(path.noise_ratio(t)), float(path.noise_ratio(t_next))
    ours = GDDIM(eta).step(lambda *_: x_0, x_t / alpha, here, there, lambda: z)
    assert_close(alpha_next * ours, native, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sampler", [GDDIM(1.0), DDIM(1.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_eta_one_is_the_posterior_of_the_less_noisy_sample(sampler, here, there):
    """By Bayes from x' ~ N(x_0, s'^2) and x ~ N(x', s^2 - s'^2): precisions add."""
    x, x_0 = numbers(0), numbers(1)
    precision = 1 / there**2 + 1 / (here**2 - there**2)
    mean, std = moments(sampler, x, x_0, here, there)
    assert_close(mean, (x_0 / there**2 + x / (here**2 - there**2)) / precision, rtol=1e-10, atol=1e-10)
    assert std == pytest.approx(precision**-0.5, rel=1e-10)


@pytest.mark.parametrize(("here", "there"), PAIRS)
@pytest.mark.parametrize("eta", ETAS)
def test_where_the_denoised_sample_is_known_the_level_is_reached_exactly(eta, here, there):
    """x_0 + s eps has become x_0 + s' eps' in law: the kept noise and the fresh one make up the whole level."""
    x_0, zero = numbers(1), torch.zeros(8, 3, dtype=torch.float64)
    for sampler in (GDDIM(eta), DDIM(min(eta, 1.0)), Euler(), Renoising()):
        kept, _ = moments(sampler, x_0 + here * numbers(0), x_0, here, there)
        share = ((kept - x_0) / numbers(0)).mean().item()
        _, fresh = moments(sampler, zero, zero, here, there)
        assert math.hypot(share, fresh) == pytest.approx(there, rel=1e-10)


@pytest.mark.parametrize("eta", ETAS[:-1])
def test_two_steps_of_one_denoised_sample_have_the_law_of_one(eta):
    """An SDE's transitions compose."""
    x, x_0 = numbers(0), numbers(1)
    middle, first = moments(GDDIM(eta), x, x_0, 4.0, 1.5)
    twice, second = moments(GDDIM(eta), middle, x_0, 1.5, 0.3)
    once, std = moments(GDDIM(eta), x, x_0, 4.0, 0.3)
    gain = ((twice - x_0) / (middle - x_0)).mean().item()
    assert_close(twice, once, rtol=1e-10, atol=1e-10)
    assert math.hypot(gain * first, second) == pytest.approx(std, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("here", "there"), PAIRS)
@pytest.mark.parametrize("eta", ETAS)
def test_the_variance_of_one_step_of_gaussian_data_has_a_closed_form(eta, here, there, monkeypatch):
    """D = x d^2 / (d^2 + s^2), so the step multiplies x by (d^2 + s s' rho) / (d^2 + s^2) and adds s'^2 (1 - rho^2)."""
    data = 0.5
    denoiser = Denoiser(GaussianMixture([[0.0]], [data]), X0Prediction(VarianceExploding()))
    rho = (there / here) ** (eta**2)
    _, (latent, *fresh) = response(
        GDDIM(eta), denoiser, torch.tensor([here, there], dtype=torch.float64), monkeypatch, 1
    )
    ours = latent**2 * (here**2 + data**2) / here**2 + sum(f**2 for f in fresh)  # from x of the marginal's variance
    expected = (data**2 + here * there * rho) ** 2 / (data**2 + here**2) + there**2 * (1 - rho**2)
    assert ours.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_limits_of_eta(here, there):
    x, x_0 = numbers(0), numbers(1)
    ode, renoised = (moments(sampler, x, x_0, here, there) for sampler in (Euler(), Renoising()))
    for limit, eta in ((ode, 0.0), (renoised, 100.0)):
        mean, std = moments(GDDIM(eta), x, x_0, here, there)
        assert_close(mean, limit[0], rtol=1e-9, atol=1e-9)
        assert std == pytest.approx(limit[1], abs=1e-9)
    assert_close(moments(DDIM(0.0), x, x_0, here, there)[0], ode[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.05, 0.5, 1.0, 1.4])
@pytest.mark.parametrize("here", [0.01, 1.0, 50.0])
def test_its_noise_per_step_is_that_of_the_sde(eta, here):
    """dx = (1 + eta^2) (x - D) ds / s + eta sqrt(2 s |ds|) dw: the drift and the variance of a small step."""
    x, x_0, step = numbers(0), numbers(1), 1e-5 * here
    mean, std = moments(GDDIM(eta), x, x_0, here, here - step)
    assert_close((mean - x) / step, -(1 + eta**2) * (x - x_0) / here, rtol=1e-4, atol=1e-4 / here)
    assert std**2 / step == pytest.approx(2 * eta**2 * here, rel=1e-4)


@pytest.mark.parametrize("sampler", [GDDIM(1.5), DDIM(1.0), Renoising()], ids=lambda s: type(s).__name__)
def test_the_last_step_to_zero_noise_adds_none(sampler):
    x_0 = numbers(1)
    assert torch.equal(sampler.step(lambda *_: x_0, numbers(0), 0.5, 0.0, None), x_0)
