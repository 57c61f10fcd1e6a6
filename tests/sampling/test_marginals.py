"""With an exact score and many steps every sampler, however much noise it draws, reproduces the data."""

import math

import pytest
import torch
from sampler_cases import GivenNoise, latents, name
from torch.testing import assert_close

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.sampling import DDIM, GDDIM, Euler, Heun, PredictorCorrector, Restart, generate
from fdistill.theory.noise_levels import karras_grid
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import X0Prediction

pytestmark = pytest.mark.system  # seconds, too many for make check

MEANS, STD, SHARES = (-1.0, 0.6), 0.25, (0.3, 0.7)
MEAN = sum(share * mean for share, mean in zip(SHARES, MEANS, strict=True))
VARIANCE = STD**2 + sum(share * (mean - MEAN) ** 2 for share, mean in zip(SHARES, MEANS, strict=True))
FOURTH = sum(
    share * ((mean - MEAN) ** 4 + 6 * (mean - MEAN) ** 2 * STD**2 + 3 * STD**4)
    for share, mean in zip(SHARES, MEANS, strict=True)
)
KOLMOGOROV = 1.95  # sqrt(n) times the distance of the distribution functions exceeds it with probability 0.001


def samples_of(sampler, monkeypatch, dim=1, n=4000, steps=300):
    """The mixture along the first axis, noise of its components' width along all others."""
    monkeypatch.setattr("fdistill.sampling.base.LatentStreams", GivenNoise)
    centres = [[mean] + [0.0] * (dim - 1) for mean in MEANS]
    denoiser = Denoiser(GaussianMixture(centres, (STD, STD), SHARES), X0Prediction(VarianceExploding()))
    return generate(sampler, denoiser, latents(n, dim), karras_grid(steps, 0.005, 40.0), batch_size=n)


def assert_mixture(x):
    """Mean, variance and distribution function within what n samples of the mixture itself show."""
    n, ordered = len(x), x.sort().values
    cdf = sum(s * torch.special.ndtr((ordered - mean) / STD) for s, mean in zip(SHARES, MEANS, strict=True))
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((cdf - ranks[:-1]).max().item(), (ranks[1:] - cdf).max().item())
    assert distance * math.sqrt(n) < KOLMOGOROV
    assert abs(x.mean().item() - MEAN) < 3.5 * math.sqrt(VARIANCE / n)
    assert abs(x.var().item() - VARIANCE) < 3.5 * math.sqrt((FOURTH - VARIANCE**2) / n)


@pytest.mark.parametrize(
    "sampler",
    [
        Euler(),
        GDDIM(0.5),
        GDDIM(1.0),
        GDDIM(1.2),
        GDDIM(2.0),
        DDIM(0.5),
        DDIM(1.0),
        Heun(),
        Heun(churn=40.0),
        Restart(0.1, 2.0, times=2, num_steps=20),
    ],
    ids=name,
)
def test_a_mixture_is_reproduced(sampler, monkeypatch):
    assert_mixture(samples_of(sampler, monkeypatch).squeeze(1))


@pytest.mark.parametrize("predictor", [Euler(), GDDIM(1.0)], ids=name)
def test_corrections_leave_a_mixture_of_many_dimensions_as_it_is(predictor, monkeypatch):
    sampler = PredictorCorrector(predictor, signal_to_noise=0.05)
    x = samples_of(sampler, monkeypatch, dim=64, n=1500, steps=120)
    assert_mixture(x[:, 0])
    assert_close(x[:, 1:].var().item(), STD**2, rtol=0.05, atol=0)


def test_corrections_of_expected_norms_leave_one_dimension_as_it_is(monkeypatch):
    sampler = PredictorCorrector(GDDIM(1.0), norms="expected")
    assert_mixture(samples_of(sampler, monkeypatch, steps=200).squeeze(1))


def test_norms_of_samples_of_one_dimension_spoil_them(monkeypatch):
    """The length of a Langevin step tells too much of the sample, and is too long where its score vanishes."""
    sampler = PredictorCorrector(GDDIM(1.0), signal_to_noise=0.05)
    x = samples_of(sampler, monkeypatch, steps=200).squeeze(1)
    assert abs(x.var().item() - VARIANCE) > 5 * math.sqrt((FOURTH - VARIANCE**2) / len(x))


def test_corrections_mend_what_a_few_steps_of_the_predictor_miss(monkeypatch):
    def missing(sampler):
        return abs(samples_of(sampler, monkeypatch, dim=64, n=500, steps=12)[:, 1:].var().item() / STD**2 - 1)

    assert missing(PredictorCorrector(Euler(), corrections=4, signal_to_noise=0.1)) < 0.7 * missing(Euler())
