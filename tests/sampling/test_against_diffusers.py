"""Step for step what diffusers' schedulers compute, from the same latents, denoiser and noise."""

import importlib
import itertools

import diffusers
import pytest
import torch
from sampler_cases import GivenNoise, exact, latents
from torch.testing import assert_close

from fdistill.sampling import DDIM, GDDIM, Euler, Heun, PredictorCorrector, Renoising
from fdistill.theory.noise_levels import karras_grid

MIXTURE = {"means": [[-1.0, 0.5], [0.8, -0.2]], "stds": [0.3, 0.4], "weights": [1.0, 2.0]}


@pytest.fixture
def feed(monkeypatch):
    """One sequence of noise for our sampler and, from its beginning again, for a module of diffusers."""

    def into(module):
        noise = GivenNoise(latents())
        module = importlib.import_module(f"diffusers.schedulers.{module}")
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: noise.normal().reshape(shape), raising=False)

    monkeypatch.setattr("fdistill.sampling.base.LatentStreams", GivenNoise)
    return into


def assert_same_steps(sampler, grid, theirs, tolerance):
    """`theirs` runs their loop with a denoiser, from sigma z; what is asked must agree as well as what comes out."""
    ours, other = exact(**MIXTURE), exact(**MIXTURE)
    samples = sampler(ours, latents(), grid)
    expected = theirs(lambda x, sigma: other(x, torch.full((16,), float(sigma), dtype=torch.float64)))
    assert len(ours.asked) == len(other.asked)
    for (x, sigma), (their_x, their_sigma) in zip(ours.asked, other.asked, strict=True):
        assert sigma == pytest.approx(their_sigma, rel=tolerance)
        assert_close(x / sigma, their_x.double() / sigma, rtol=tolerance, atol=tolerance)
    assert_close(samples, expected.double(), rtol=tolerance, atol=tolerance)


def ve_loop(scheduler, timesteps, x, denoise, **step):
    """The loop of a scheduler whose samples are in variance-exploding coordinates and whose networks predict eps."""
    for t in timesteps:
        scheduler.scale_model_input(x, t)
        sigma = scheduler.sigmas[scheduler.step_index].double()
        x = scheduler.step((x - denoise(x, sigma)) / sigma, t, x, **step).prev_sample
    return x


def once(sigmas):
    """A scheduler's levels, each once, in double precision."""
    return torch.unique_consecutive(sigmas.double())


@pytest.mark.parametrize(
    ("scheduler", "sampler", "tolerance"),
    [
        (diffusers.EulerDiscreteScheduler, Euler(), 1e-4),  # all compute in single precision
        (diffusers.EulerDiscreteScheduler, DDIM(0.0), 1e-4),
        (diffusers.EulerDiscreteScheduler, GDDIM(0.0), 1e-4),
        (diffusers.HeunDiscreteScheduler, Heun(), 1e-5),
        (diffusers.EulerAncestralDiscreteScheduler, GDDIM(1.0), 1e-4),
        (diffusers.EulerAncestralDiscreteScheduler, DDIM(1.0), 1e-4),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_schedulers_in_variance_exploding_coordinates(scheduler, sampler, tolerance, feed):
    theirs = scheduler(num_train_timesteps=1000, beta_schedule="scaled_linear", prediction_type="epsilon")
    theirs.set_timesteps(9)
    grid = once(theirs.sigmas)
    feed(theirs.__module__.split(".")[-1])
    start = grid[0] * latents()
    assert_same_steps(sampler, grid, lambda denoise: ve_loop(theirs, theirs.timesteps, start, denoise), tolerance)


@pytest.mark.parametrize(
    "churn", [{}, {"churn": 4.0}, {"churn": 40.0, "churn_min": 0.1, "churn_max": 3.0, "churn_noise": 1.1}], ids=str
)
def test_churn_is_that_of_edm_euler_where_heun_and_euler_agree(churn, feed):
    """Data of a single point: the slope is constant along every trajectory of the ODE, so that both steps are exact."""
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.02, sigma_max=20.0)
    scheduler.set_timesteps(9)
    scheduler.is_scale_input_called = True  # there is no network to scale for: the point is the denoised sample
    names = {"churn": "s_churn", "churn_min": "s_tmin", "churn_max": "s_tmax", "churn_noise": "s_noise"}
    settings = {names[key]: value for key, value in churn.items()}
    feed("scheduling_edm_euler")
    x = scheduler.sigmas[0] * latents()
    point = torch.tensor([[0.3, -0.3]]).expand(16, 2)
    for k, t in enumerate(scheduler.timesteps, start=1):
        x = scheduler.step(x, t, x, **settings, pred_original_sample=point).prev_sample
        ours = Heun(**churn | {"churn": churn.get("churn", 0.0) * k / 9})  # as much a step on the shorter grid
        samples = ours(exact([point[0].tolist()], stds=[0.0]), latents(), once(scheduler.sigmas)[: k + 1])
        assert_close(samples, x.double(), rtol=1e-5, atol=1e-5 * float(scheduler.sigmas[k]) + 1e-6)


@pytest.mark.parametrize("churn", [{}, {"churn": 4.0}, {"churn": 40.0, "churn_min": 0.1, "churn_max": 3.0}])
def test_heun_with_churn_is_algorithm_2_of_edm(churn, feed):
    module = pytest.importorskip("diffusers.schedulers.deprecated.scheduling_karras_ve")
    settings = {f"s_{key.removeprefix('churn_')}": value for key, value in churn.items()}
    scheduler = module.KarrasVeScheduler(**{"s_churn": 0.0, "s_min": 0.0, "s_max": 1e9, "s_noise": 1.02} | settings)
    grid = karras_grid(9, 0.02, 20.0)
    scheduler.num_inference_steps = 9
    feed("deprecated.scheduling_karras_ve")

    def loop(denoise):
        x = grid[0] * latents()
        for here, there in itertools.pairwise(grid):
            churned = churn and scheduler.config.s_min <= here <= scheduler.config.s_max  # it draws in vain elsewhere
            x_hat, hat = scheduler.add_noise_to_input(x, here) if churned else (x, here)
            step = scheduler.step((denoise(x_hat, hat) - x_hat) / hat, hat, there, x_hat)
            x = step.prev_sample
            if there > 0:
                output = (denoise(x, there) - x) / there
                x = scheduler.step_correct(output, hat, there, x_hat, x, step.derivative).prev_sample
        return x

    assert_same_steps(Heun(**churn, churn_noise=1.02), grid, loop, 1e-11)


def vp_scheduler(cls, **options):
    """A discrete scheduler of 1000 levels in double precision, which predicts the sample; its levels with a last 0."""
    scheduler = cls(beta_schedule="linear", clip_sample=False, prediction_type="sample", **options)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(10)
    alpha2 = scheduler.alphas_cumprod[scheduler.timesteps]
    return scheduler, torch.cat([((1 - alpha2) / alpha2).sqrt(), torch.zeros(1, dtype=torch.float64)]), alpha2.sqrt()


def vp_loop(scheduler, grid, alphas, denoise, **step):
    """Their samples are alpha times ours."""
    x = alphas[0] * grid[0] * latents()
    for t, sigma, alpha in zip(scheduler.timesteps, grid[:-1], alphas, strict=True):
        x = scheduler.step(denoise(x / alpha, sigma), t, x, **step).prev_sample
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_diffusers_ddim(eta, feed):
    scheduler, grid, alphas = vp_scheduler(diffusers.DDIMScheduler)
    feed("scheduling_ddim")
    assert_same_steps(DDIM(eta), grid, lambda denoise: vp_loop(scheduler, grid, alphas, denoise, eta=eta), 1e-9)


def test_gddim_of_eta_one_is_ddpm(feed):
    scheduler, grid, alphas = vp_scheduler(diffusers.DDPMScheduler)
    feed("scheduling_ddpm")
    assert_same_steps(GDDIM(1.0), grid, lambda denoise: vp_loop(scheduler, grid, alphas, denoise), 1e-9)


@pytest.mark.parametrize("sampler", [DDIM(1.0), GDDIM(1.0)], ids=lambda s: type(s).__name__)
def test_the_variance_of_eta_one_is_that_of_ddpm_in_every_step(sampler):
    scheduler, grid, _ = vp_scheduler(diffusers.DDPMScheduler)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    for index in range(9):
        here, there = grid[index].item(), grid[index + 1].item()
        std = sampler.step(lambda x, _: zero, zero, here, there, lambda: torch.ones_like(zero)).item()
        alpha = scheduler.alphas_cumprod[scheduler.timesteps[index + 1]].sqrt().item()
        assert (alpha * std) ** 2 == pytest.approx(float(scheduler._get_variance(scheduler.timesteps[index])), rel=1e-9)


def test_renoising_is_the_scheduler_of_consistency_models(feed):
    scheduler = diffusers.CMStochasticIterativeScheduler(sigma_min=0.0, sigma_max=20.0, clip_denoised=False)
    scheduler.set_timesteps(timesteps=[30, 20, 11, 4])
    scheduler.sigmas = scheduler.sigmas.double()
    feed("scheduling_consistency_models")

    def loop(denoise):
        x = scheduler.sigmas[0] * latents()
        for index, t in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(x, t)
            sigma = scheduler.sigmas[index]
            skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
            x = scheduler.step((denoise(x, sigma) - skip * x) / out, t, x).prev_sample
        return x

    assert_same_steps(Renoising(), scheduler.sigmas, loop, 1e-9)


@pytest.mark.parametrize("corrections", [1, 3])
def test_corrections_are_those_of_the_scheduler_of_score_sdes(corrections, feed):
    """It takes the norm over its batch, we that of each sample: one row at a time."""
    scheduler = diffusers.ScoreSdeVeScheduler(snr=0.1)
    scheduler.timesteps = torch.ones(1)
    sigma, row = 0.7, latents()[:1]
    given = GivenNoise(row)
    denoiser, level = exact(**MIXTURE), torch.tensor([sigma], dtype=torch.float64)
    x = PredictorCorrector(Euler(), corrections, 0.1).step(
        lambda x, s: denoiser(x, torch.tensor([s], dtype=torch.float64)), row, 1.0, sigma, given.normal
    )
    expected = Euler().step(lambda x, s: denoiser(x, level / level), row, 1.0, sigma, None)
    feed("scheduling_sde_ve")
    noises = iter(given.drawn)
    importlib.import_module("diffusers.schedulers.scheduling_sde_ve").randn_tensor = lambda *_, **__: next(noises)
    for _ in range(corrections):
        score = (denoiser(expected, level) - expected) / sigma**2
        expected = scheduler.step_correct(score, expected).prev_sample
    assert_close(x, expected, rtol=1e-7, atol=1e-7)  # its step has single precision
