"""Noise levels of any student of up to four steps, as diffusers' own scheduler computes them from its settings."""

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler

from fdistill.io.export.stock_levels import stock_levels
from fdistill.theory.noise_levels import karras_grid

LEVELS = {
    "one": [5.0],
    "two": [5.0, 0.8],
    "two far apart": [80.0, 0.002],
    "two close together": [5.0, 4.9],
    "three": [80.0, 24.4, 5.84],
    "four": [80.0, 3.0, 0.9, 0.1],
    "four of a Karras grid": karras_grid(4)[:-1].tolist(),
    "seven of few decimals": [80.0, 31.0, 11.1, 7.3, 2.9, 0.61, 0.13],
    "eight of a power law to 0": [40.0 * (1 - k / 8) ** 3.7 for k in range(8)],
}


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_scheduler_has_the_student_s_levels(levels):
    found = stock_levels(torch.tensor(levels, dtype=torch.float64))
    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=found.num_train_timesteps, sigma_min=0.0, sigma_max=levels[0], rho=found.rho
    )
    scheduler.set_timesteps(timesteps=found.timesteps)
    expected = torch.tensor([*levels, 0.0])
    torch.testing.assert_close(scheduler.sigmas, expected, rtol=2.5e-7, atol=0)
    if "timesteps" not in found.arguments:
        scheduler.set_timesteps(num_inference_steps=len(levels))
        torch.testing.assert_close(scheduler.sigmas, expected, rtol=2.5e-7, atol=0)


@pytest.mark.parametrize("name", ["two", "two far apart", "eight of a power law to 0"])
def test_where_a_power_law_fits_the_number_of_steps_says_all(name):
    levels = LEVELS[name]
    assert stock_levels(torch.tensor(levels, dtype=torch.float64)).arguments == f"num_inference_steps={len(levels)}"


def test_many_levels_that_follow_no_such_law_have_no_settings():
    assert stock_levels(80 * torch.arange(8, dtype=torch.float64).neg().exp()) is None
