"""The law of a Gaussian step has the density that torch.distributions gives it, on every path and at every eta."""

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from fdistill.sampling import GDDIM
from fdistill.sampling.step_law import StepLaw
from fdistill.theory.paths import RectifiedFlow, VarianceExploding, VPCosine, VPLinear

ETAS = (0.3, 0.5, 1.0, 1.2, 2.0, 7.0)
TIMES = [(0.9, 0.7), (0.5, 0.48), (0.2, 0.01)]


def numbers(seed, n=8):
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def law_of(eta, x, denoised, here, there):
    shares = (torch.full((len(x),), share, dtype=torch.float64) for share in GDDIM(eta).shares(here, there))
    return StepLaw.of(denoised, x, *shares)


@pytest.mark.parametrize(
    "path", [VPLinear(), VPCosine(), VarianceExploding(), RectifiedFlow()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("times", TIMES)
def test_the_density_of_a_step_is_that_of_its_gaussian_in_the_paths_own_coordinates(path, eta, times):
    t, t_next = (torch.tensor(time, dtype=torch.float64) for time in times)
    (alpha, sigma), (alpha_next, sigma_next) = ((path.alpha(at), path.sigma(at)) for at in (t, t_next))
    x_t, x_0, x_next = numbers(0), numbers(1), numbers(2)
    rho = ((sigma_next / alpha_next) / (sigma / alpha)) ** (eta**2)
    mean = alpha_next * x_0 + sigma_next * rho * (x_t - alpha * x_0) / sigma
    std = sigma_next * (1 - rho.square()).sqrt()
    expected = Independent(Normal(mean, std), 1).log_prob(x_next) / 3
    ours = law_of(eta, x_t / alpha, x_0, float(path.noise_ratio(t)), float(path.noise_ratio(t_next)))
    assert_close(ours.in_coordinates(alpha_next).log_prob(x_next), expected, rtol=1e-9, atol=1e-9)
    assert_close(ours.log_prob(x_next / alpha_next) - alpha_next.log(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", ETAS)
def test_the_divergence_of_two_steps_is_that_of_their_gaussians(eta):
    laws = [law_of(eta, numbers(0), numbers(seed), 3.0, 0.7) for seed in (1, 2)]
    one, other = (Independent(Normal(law.mean, law.std[:, None]), 1) for law in laws)
    assert_close(laws[0].kl(laws[1].mean), kl_divergence(one, other) / 3)


def test_the_score_of_a_step_has_mean_zero_and_the_variance_of_fisher():
    """In the mean of one entry: E grad = 0 and E grad^2 = 1 / std^2, by quadrature over the step."""
    nodes, weights = (torch.from_numpy(value) for value in np.polynomial.hermite_e.hermegauss(12))
    mean = torch.zeros(len(nodes), 1, dtype=torch.float64, requires_grad=True)
    std = torch.full((len(nodes),), 0.3, dtype=torch.float64)
    (score,) = torch.autograd.grad(StepLaw(mean, std).log_prob(0.3 * nodes[:, None]).sum(), mean)
    share = weights / weights.sum()
    assert float((share * score[:, 0]).sum()) == pytest.approx(0, abs=1e-12)
    assert float((share * score[:, 0].square()).sum()) == pytest.approx(1 / 0.3**2)


def test_half_precision_is_raised_to_single():
    law = StepLaw(torch.zeros(2, 3, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16))
    assert law.log_prob(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
