"""Samplers follow the probability-flow ODE at their order, and count their evaluations."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.denoiser import Denoiser
from fdistill.networks import MLP, GaussianMixture
from fdistill.noise_levels import karras_grid
from fdistill.paths import VarianceExploding
from fdistill.preconditioning import EDM, X0Prediction
from fdistill.samplers import euler, generate, heun, one_step

STD, CENTRE, SIGMA_MIN, SIGMA_MAX = 0.5, 0.3, 0.05, 20.0


class CountingDenoiser(Denoiser):
    """Counts evaluations of the whole network."""

    evaluations = 0

    def forward(self, x, sigma, labels=None):
        self.evaluations += 1
        return super().forward(x, sigma, labels)


def gaussian():
    return CountingDenoiser(GaussianMixture([[CENTRE, -CENTRE]], [STD]), X0Prediction(VarianceExploding()))


def conditional():
    torch.manual_seed(0)
    return CountingDenoiser(MLP(dim=2, width=16, depth=2, num_classes=3).double(), EDM(STD))


def latents(n=16):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def exact_flow(noise, sigma):
    """Gaussian data: x - mean shrinks with the deviation of the marginal."""
    centre = torch.tensor([CENTRE, -CENTRE], dtype=torch.float64)
    return centre + (SIGMA_MAX * noise - centre) * math.hypot(STD, sigma) / math.hypot(STD, SIGMA_MAX)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_order_of_convergence(sampler, order):
    grids = [karras_grid(n, SIGMA_MIN, SIGMA_MAX)[:-1] for n in (41, 81, 161, 321)]
    exact = exact_flow(latents(), SIGMA_MIN)
    error = torch.stack([(sampler(gaussian(), latents(), grid) - exact).norm() for grid in grids])
    orders = (error[:-1] / error[1:]).log2()
    assert_close(orders[-1].item(), float(order), rtol=0, atol=0.05)
    assert (orders - order).abs().diff().max() < 0  # it comes closer with every refinement


def test_heun_to_zero_noise_ends_on_the_data_gaussian():
    samples = heun(gaussian(), latents(), karras_grid(200, 0.002, SIGMA_MAX))
    assert_close(samples, exact_flow(latents(), 0.0), rtol=0, atol=1e-3)


def test_one_step_is_the_denoiser_at_the_first_level():
    denoiser = gaussian()
    level = torch.full((16,), 7.0, dtype=torch.float64)
    for sigmas in ([7.0], [7.0, 1.0, 0.0]):
        assert torch.equal(one_step(denoiser, latents(), torch.tensor(sigmas)), denoiser(7.0 * latents(), level))


@pytest.mark.parametrize("sampler", [euler, heun])
def test_a_single_step_to_zero_noise_is_the_one_step_generator(sampler):
    step = sampler(gaussian(), latents(), torch.tensor([7.0, 0.0]))
    assert_close(step, one_step(gaussian(), latents(), torch.tensor([7.0])), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("sampler", "steps", "evaluations"), [(one_step, 18, 1), (euler, 18, 18), (heun, 18, 35), (heun, 1, 1)]
)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_number_of_evaluations(sampler, steps, evaluations, guidance):
    unconditional, labelled = gaussian(), conditional()
    sampler(unconditional, latents(), karras_grid(steps), None, guidance)
    sampler(labelled, latents(), karras_grid(steps), torch.zeros(16, dtype=torch.long), guidance)
    assert unconditional.evaluations == evaluations
    assert labelled.evaluations == evaluations * (1 if guidance == 1 else 2)


def test_heun_between_positive_levels_costs_two_evaluations_a_step():
    denoiser = gaussian()
    heun(denoiser, latents(), torch.tensor([5.0, 2.0, 1.0]))
    assert denoiser.evaluations == 4


@pytest.mark.parametrize("sampler", [one_step, euler, heun])
@pytest.mark.parametrize(
    "grid",
    [[], [1.0, 1.0, 0.0], [1.0, 2.0], [1.0, 0.0, -0.5], [0.0], [-1.0], [[1.0, 0.0]], [1.0, math.nan], [math.nan, 0.0]],
    ids=str,
)
def test_a_grid_that_does_not_fall_to_zero_is_refused(sampler, grid):
    with pytest.raises(ValueError, match="falls strictly"):
        sampler(gaussian(), latents(), torch.tensor(grid))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 16, 100])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", [one_step, heun])
def test_generated_samples_do_not_depend_on_the_batch_size(sampler, guidance, batch_size):
    grid = karras_grid(4, 0.05, 5.0)
    labels = torch.arange(16) % 3
    for denoiser, condition in ((gaussian(), None), (conditional(), labels)):
        whole = sampler(denoiser, latents(), grid, condition, guidance)
        pieces = generate(sampler, denoiser, latents(), grid, condition, guidance, batch_size)
        assert_close(pieces, whole, rtol=1e-11, atol=1e-11)


def test_generated_samples_carry_no_gradient():
    samples = generate(one_step, conditional(), latents(), torch.tensor([5.0]), torch.zeros(16, dtype=torch.long))
    assert not samples.requires_grad


@pytest.mark.parametrize("n", [4, 20])
def test_as_many_labels_as_samples_are_required(n):
    with pytest.raises(ValueError, match=f"one label per sample.*16.*{n}"):
        generate(one_step, conditional(), latents(), torch.tensor([5.0]), torch.zeros(n, dtype=torch.long), 1.0, 4)


def test_samplers_keep_the_precision_of_the_noise():
    for dtype in (torch.float32, torch.float64):
        assert heun(gaussian(), latents().to(dtype), karras_grid(3)).dtype == dtype
