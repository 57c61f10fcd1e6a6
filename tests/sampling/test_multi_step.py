"""Students of several steps: on Gaussian data every step is affine, so that their law is known in closed form."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, GaussianMixture
from fdistill.sampling import generate, multi_step, one_step, renoise
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import EDM, X0Prediction

STD, CENTRE = 0.5, 0.3
LEVELS = {1: [3.0], 2: [3.0, 0.8], 4: [80.0, 2.0, 0.7, 0.1]}


class PerfectStudent(Denoiser):
    """Follows the probability-flow ODE of Gaussian data from any level to 0: x - mean shrinks as the deviation does."""

    def __init__(self):
        super().__init__(GaussianMixture([[CENTRE]], [STD]), X0Prediction(VarianceExploding()))

    def forward(self, x, sigma, labels=None):
        return CENTRE + (x - CENTRE) * (STD / (STD**2 + sigma.square()).sqrt())[:, None]


def exact_denoiser():
    return Denoiser(GaussianMixture([[CENTRE]], [STD]), X0Prediction(VarianceExploding()))


def network(num_classes=0, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(MLP(dim=2, width=16, depth=2, num_classes=num_classes).to(dtype), EDM(STD))


def grid(levels):
    return torch.tensor(levels, dtype=torch.float64)


def latents(steps, n=16, dtype=torch.float64):
    return torch.randn(n, steps, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))


def affine_map(denoiser, levels):
    """Offset, and coefficient of each z_k, of a sampler that is affine in its latents (in one dimension)."""
    steps = len(levels)
    noise = torch.cat([torch.zeros(1, steps, dtype=torch.float64), torch.eye(steps, dtype=torch.float64)])[..., None]
    samples = multi_step(denoiser, noise, grid(levels))[:, 0]
    return samples[0].item(), samples[1:] - samples[0]


@pytest.mark.parametrize("levels", LEVELS.values(), ids=str)
def test_with_the_exact_denoiser_of_a_gaussian_every_step_shrinks_by_its_factor(levels):
    shrink = [STD**2 / (STD**2 + level**2) for level in levels]
    offset, coefficients = affine_map(exact_denoiser(), levels)
    assert offset == pytest.approx(CENTRE * (1 - math.prod(shrink)), rel=1e-12)
    expected = [level * math.prod(shrink[k:]) for k, level in enumerate(levels)]
    assert_close(coefficients, grid(expected), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("levels", [[1e9], [1e9, 0.8], [1e9, 50.0, 0.8, 0.01]], ids=str)
def test_every_step_of_a_perfect_student_preserves_the_law_of_the_data(levels):
    offset, coefficients = affine_map(PerfectStudent(), levels)
    assert offset == pytest.approx(CENTRE, rel=1e-8)
    assert coefficients.square().sum().item() == pytest.approx(STD**2, rel=1e-12)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=str)
def test_every_further_step_of_a_perfect_student_heals_what_the_first_level_left(levels):
    left = math.prod(STD**2 / (STD**2 + level**2) for level in levels)
    offset, coefficients = affine_map(PerfectStudent(), levels)
    assert coefficients.square().sum().item() == pytest.approx(STD**2 * (1 - left), rel=1e-12)
    assert offset == pytest.approx(CENTRE * (1 - math.sqrt(left)), rel=1e-12)


def test_a_single_step_is_the_one_step_generator():
    noise = latents(1)
    assert torch.equal(multi_step(network(), noise, grid([3.0])), one_step(network(), noise[:, 0], grid([3.0])))


@pytest.mark.parametrize("levels", LEVELS.values(), ids=str)
def test_one_evaluation_a_step_and_two_where_it_is_guided(levels):
    seen = []
    denoiser = network(num_classes=3)
    denoiser.register_forward_hook(lambda _, inputs, output: seen.append(inputs[1].unique().tolist()))
    labels = torch.arange(16) % 3
    multi_step(denoiser, latents(len(levels)), grid(levels), labels)
    assert seen == [[level] for level in levels]
    multi_step(denoiser, latents(len(levels)), grid(levels), labels, guidance=2.0)
    assert len(seen) == 3 * len(levels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_and_sampling_see_the_same_numbers(dtype):
    """A training loop has its levels as plain numbers, and renoises step by step."""
    noise, denoiser, x = latents(4, dtype=dtype), network(dtype=dtype), None
    for z, level in zip(noise.unbind(1), LEVELS[4], strict=True):
        x = denoiser(renoise(x, z, level), torch.full((16,), level, dtype=dtype))
    assert x.dtype == dtype
    assert torch.equal(multi_step(denoiser, noise, grid(LEVELS[4])), x)


@pytest.mark.parametrize("batch_size", [1, 3, 16, 100])
@pytest.mark.parametrize("steps", LEVELS)
def test_a_sample_is_a_function_of_its_own_latents(steps, batch_size):
    noise, sigmas, labels = latents(steps), grid(LEVELS[steps]), torch.arange(16) % 3
    whole = multi_step(network(3), noise, sigmas, labels)
    pieces = generate(multi_step, network(3), noise, sigmas, labels, batch_size=batch_size)
    assert_close(pieces, whole, rtol=1e-11, atol=1e-11)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert_close(multi_step(network(3), noise[order], sigmas, labels[order]), whole[order], rtol=1e-11, atol=1e-11)


def test_each_sample_may_have_a_level_of_its_own():
    x, z = latents(2).unbind(1)
    levels = torch.linspace(0.1, 5, 16, dtype=torch.float64)
    rows = torch.cat([renoise(x[i : i + 1], z[i : i + 1], float(levels[i])) for i in range(16)])
    assert torch.equal(renoise(x, z, levels), rows)
    assert torch.equal(renoise(None, z, levels), renoise(torch.zeros_like(z), z, levels))


def test_the_gradient_of_renoised_samples_is_that_of_the_samples():
    x, z = latents(2).unbind(1)
    renoise(x.requires_grad_(), z, 2.0).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(z))


def test_renoise_keeps_the_precision_of_the_noise():
    z = latents(1, dtype=torch.float32)[:, 0]
    for sigma in (2.0, torch.tensor(2.0, dtype=torch.float64), torch.full((16,), 2.0, dtype=torch.float64)):
        assert renoise(None, z, sigma).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "sigma", "words"),
    [
        (None, torch.ones(3), "sample"),
        (None, torch.ones(16, 2), r"got shape \(16, 2\)"),
        (torch.zeros(16, 3), 1.0, r"expected \(16, 3\), got \(16, 2\)"),
        (torch.zeros(1, 2), 1.0, r"expected \(1, 2\), got \(16, 2\)"),
    ],
)
def test_what_does_not_fit_the_noise_is_refused(x, sigma, words):
    with pytest.raises(ValueError, match=words):
        renoise(x, latents(1)[:, 0], sigma)


@pytest.mark.parametrize(
    ("steps", "levels", "words"),
    [
        (2, [3.0, 0.0], "levels"),
        (2, [3.0], "levels"),
        (1, [3.0, 1.0], "noise"),
        (0, [], "levels"),
        (2, [1.0, 3.0], "falls"),
        (2, [3.0, 3.0], "falls"),
        (2, [math.nan, 1.0], "falls"),
    ],
)
def test_levels_that_do_not_fall_or_fit_are_refused(steps, levels, words):
    with pytest.raises(ValueError, match=words):
        multi_step(network(), latents(steps), grid(levels))
