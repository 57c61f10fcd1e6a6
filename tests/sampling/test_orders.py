"""Samplers follow the probability-flow ODE, and their law the SDE's, at their order of convergence."""

import math

import pytest
import torch
from sampler_cases import exact, gaussian_flow, latents, name, response
from torch.testing import assert_close

from fdistill.sampling import DDIM, GDDIM, Euler, Heun, Renoising, Restart, Sampler, one_step
from fdistill.theory.noise_levels import karras_grid

pytestmark = pytest.mark.system  # seconds, too many for make check

SIGMA_MIN, SIGMA_MAX, STD = 0.05, 20.0, 0.5


def orders_of(errors):
    errors = torch.tensor(errors, dtype=torch.float64).abs()
    return (errors[:-1] / errors[1:]).log2()


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(Euler(), 1), (DDIM(), 1), (GDDIM(), 1), (Heun(), 2)],
    ids=lambda s: name(s) if isinstance(s, Sampler) else str(s),
)
def test_order_of_convergence_to_the_ode(sampler, order):
    grids = [karras_grid(n, SIGMA_MIN, SIGMA_MAX)[:-1] for n in (41, 81, 161, 321)]
    flow = gaussian_flow(latents(), SIGMA_MAX, SIGMA_MIN)
    orders = orders_of([(sampler(exact(), latents(), grid) - flow).norm() for grid in grids])
    assert_close(orders[-1].item(), float(order), rtol=0, atol=0.05)
    assert (orders - order).abs().diff().max() < 0  # it comes closer with every refinement


def missing_variance(sampler, steps, monkeypatch):
    """Of samples at SIGMA_MIN of Gaussian data, relative, when the start has the variance of its marginal.

    Without sampling: the sampler is an affine map of all the numbers it reads, and each is standard normal.
    """
    denoiser, grid = exact([[0.7]], [STD]), karras_grid(steps + 1, SIGMA_MIN, SIGMA_MAX)[:-1]
    _, coefficients = response(sampler, denoiser, grid, monkeypatch, draws=2 * steps)
    coefficients[0] *= math.hypot(SIGMA_MAX, STD) / SIGMA_MAX
    return 1 - coefficients.square().sum().item() / (SIGMA_MIN**2 + STD**2)


@pytest.mark.parametrize("sampler", [DDIM(0.5), DDIM(1.0), GDDIM(0.5), GDDIM(1.0), GDDIM(1.2), GDDIM(2.0)], ids=name)
def test_the_variance_of_gaussian_data_is_of_first_order_in_the_step_for_every_eta(sampler, monkeypatch):
    errors = [missing_variance(sampler, steps, monkeypatch) for steps in (80, 160, 320)]
    assert abs(errors[-1]) < 0.1
    assert_close(orders_of(errors)[-1].item(), 1.0, rtol=0, atol=0.1)


def test_churn_and_restart_take_away_what_they_add_to_the_second_order(monkeypatch):
    for build in (lambda steps: Heun(churn=10.0), lambda steps: Restart(0.1, 2.0, 2, steps // 2)):
        errors = [missing_variance(build(steps), steps, monkeypatch) for steps in (40, 80, 160)]
        assert abs(errors[-1]) < 3e-3
        assert_close(orders_of(errors)[-1].item(), 2.0, rtol=0, atol=0.1)


def test_heun_to_zero_noise_ends_on_the_data_gaussian():
    samples = Heun()(exact(), latents(), karras_grid(200, 0.002, SIGMA_MAX))
    assert_close(samples, gaussian_flow(latents(), SIGMA_MAX, 0.0), rtol=0, atol=1e-3)


def test_one_step_is_the_denoiser_at_the_first_level():
    denoiser = exact()
    level = torch.full((16,), 7.0, dtype=torch.float64)
    for sigmas in ([7.0], [7.0, 1.0, 0.0]):
        assert torch.equal(one_step(denoiser, latents(), torch.tensor(sigmas)), denoiser(7.0 * latents(), level))


@pytest.mark.parametrize(
    ("sampler", "steps", "evaluations"),
    [
        (Euler(), 18, 18),
        (Heun(), 18, 35),
        (Heun(), 1, 1),
        (Heun(churn=10.0), 18, 35),
        (GDDIM(1.0), 18, 18),
        (Renoising(), 4, 4),
        (Restart(0.1, 2.0, 2, 5), 18, 35 + 2 * 2 * 5),
    ],
)
def test_number_of_evaluations(sampler, steps, evaluations):
    assert sampler.evaluations(karras_grid(steps)) == evaluations
