"""The path of timesteps is that of diffusers' schedulers, at every timestep and between two of them."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch.testing import assert_close

from fdistill.core.spec import Described
from fdistill.theory.paths import NOISE_ALONE, DDPMPath
from fdistill.theory.preconditioning import VPrediction

SCHEDULES = {
    "DDPM": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "Stable Diffusion": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "given": {"trained_betas": [0.01 * 1.003**i for i in range(1000)]},
}
every_schedule = pytest.mark.parametrize("arguments", SCHEDULES.values(), ids=SCHEDULES)


def timesteps(path, dtype=torch.float64):
    return torch.arange(path.num_timesteps, dtype=dtype) / (path.num_timesteps - 1)


@every_schedule
def test_signal_and_noise_are_those_of_the_scheduler_at_every_timestep(arguments):
    path, known = DDPMPath(**arguments), DDPMScheduler(**arguments).alphas_cumprod.double()
    t = timesteps(path)
    assert_close(path.alpha(t).square(), known, rtol=2e-5, atol=0)  # the scheduler multiplies in single precision
    assert_close(path.sigma(t).square(), 1 - known, rtol=1e-3, atol=1e-7)
    assert_close(path.alpha(t).square() + path.sigma(t).square(), torch.ones_like(t), rtol=1e-12, atol=0)


@every_schedule
def test_time_inverts_the_noise_ratio_at_timesteps_and_between_them(arguments):
    path = DDPMPath(**arguments)
    t = torch.linspace(0, 1, 3333, dtype=torch.float64)
    assert_close(path.time(path.noise_ratio(t)), t, rtol=0, atol=1e-10)
    assert (path.noise_ratio(t).diff() > 0).all()


def test_the_log_noise_ratio_is_straight_between_two_timesteps():
    path = DDPMPath()
    ends = path.noise_ratio(torch.tensor([41 / 999, 42 / 999], dtype=torch.float64)).log()
    between = path.noise_ratio(torch.tensor([41.25 / 999], dtype=torch.float64)).log()
    assert_close(between, torch.lerp(ends[:1], ends[1:], 0.25), rtol=1e-10, atol=0)


def test_noise_outside_the_timesteps_has_the_time_of_the_nearest_one():
    time = DDPMPath().time(torch.tensor([0.0, 1e-9, 1e9, math.inf]))
    assert time.tolist() == [0, 0, 1, 1]


@every_schedule
def test_single_precision_is_as_good_as_it_can_be(arguments):
    path = DDPMPath(**arguments)
    t = timesteps(path)[1:]
    sigma = path.noise_ratio(t)
    assert_close(path.time(sigma.float()).double(), t, rtol=0, atol=2e-6)
    assert_close(path.noise_ratio(t.float()).double(), sigma, rtol=3e-4, atol=0)


def test_samples_of_any_shape_and_layout_have_times():
    sigma = torch.tensor([[0.1, 1.0, 10.0]]).expand(2, 3).t()
    path = DDPMPath()
    assert torch.equal(path.time(sigma)[:, 0], path.time(torch.tensor([0.1, 1.0, 10.0])))
    assert path.alpha(path.time(torch.tensor(1.0))).item() == pytest.approx(0.5**0.5, rel=1e-5)


def test_the_description_rebuilds_it():
    betas = [0.1, 0.2, 0.4]
    again = Described.from_spec(DDPMPath(num_timesteps=3, trained_betas=betas).spec())
    t = timesteps(again)
    assert_close(again.alpha(t).square(), torch.tensor([0.9, 0.72, 0.432], dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_network_that_predicts_v_knows_that_the_path_preserves_variance():
    x_0, eps, path = torch.tensor([0.3, -0.8]), torch.tensor([1.1, 0.2]), DDPMPath()
    t = timesteps(path, torch.float32)[[100, 700]]
    scheduler = DDIMScheduler()
    v = scheduler.get_velocity(x_0, eps, torch.tensor([100, 700]))
    sigma = path.noise_ratio(t)
    how = VPrediction(path, 999.0).coefficients(sigma)
    assert_close(how.skip * (x_0 + sigma * eps) + how.out * v, x_0, rtol=1e-4, atol=1e-5)
    assert_close(how.noise, torch.tensor([100.0, 700.0]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_timesteps": 1}, "at least two: got 1"),
        (
            {"beta_schedule": "sigmoid"},
            "beta_schedule",
        ),
        ({"beta_start": 0.0}, r"lies in \(0, 1\).*got 0 to 0.02"),
        ({"beta_end": 1.0}, "SNR"),
        ({"beta_start": float("nan")}, "got nan to nan"),
        ({"beta_start": -0.1, "beta_schedule": "scaled_linear"}, "roots"),
        ({"trained_betas": [0.1, 0.2]}, "num_timesteps"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        DDPMPath(**arguments)


def test_zero_terminal_snr_leaves_noise_alone_at_the_end_and_the_first_level_as_it_was():
    plain = DDPMPath(0.00085, 0.012, 1000, "scaled_linear")
    path = DDPMPath(0.00085, 0.012, 1000, "scaled_linear", zero_terminal_snr=True)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(path.noise_ratio(ends), torch.tensor([float(plain.noise_ratio(ends[:1])), NOISE_ALONE]).double())
    stock = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", rescale_betas_zero_snr=True)
    t = torch.arange(999, dtype=torch.float64) / 999
    assert_close(path.alpha(t).square(), stock.alphas_cumprod[:-1].double(), rtol=0, atol=1e-6)
