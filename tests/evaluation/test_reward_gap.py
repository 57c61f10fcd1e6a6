"""The gap of a Gaussian is its closed form, its interval holds the truth; hacking is more reward, less diversity."""

import itertools

import pytest
import torch

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics import condition_diversity
from fdistill.evaluation.reward_gap import Gap, Look
from fdistill.evaluation.reward_hacking import HackingAlarm
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.sampling import GDDIM, generate
from fdistill.theory.paths import VarianceExploding, VPLinear
from fdistill.theory.preconditioning import X0Prediction

MEAN, STD, TARGET = 0.4, 0.7, 1.3
TIMES = [0.95, 0.7, 0.45, 0.2, 0.05]  # then 0


class Corners:
    """Noise of the corners of a cube, whose mean, variance and covariances are those of normal noise."""

    def __init__(self, latents):
        self._draws = iter(cube()[:, 1:].unbind(1))

    def normal(self):
        return next(self._draws)[:, None]


def cube():
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(TIMES))), dtype=torch.float64)


def expected_reward(path, eta):
    """E -(x - TARGET)^2 / 2 of the steps' Gaussian: its mean and variance in the path's own coordinates.

    With x_0hat = m + g (x - alpha m), g = alpha s^2 / (alpha^2 s^2 + sigma^2), a step multiplies x - alpha m by
    alpha' g + rho sigma' (1 - alpha g) / sigma and adds sigma'^2 (1 - rho^2), rho = (SNR-ratio)^(eta^2).
    """
    times = torch.tensor([*TIMES, 0.0], dtype=torch.float64)
    points = [(float(path.alpha(t)), float(path.sigma(t))) for t in times[:-1]] + [(1.0, 0.0)]
    alpha, sigma = points[0]
    off, variance = -alpha * MEAN, sigma**2  # noise alone: its mean is 0
    for (alpha, sigma), (ahead, there) in itertools.pairwise(points):
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        rho = ((there / ahead) / (sigma / alpha)) ** (eta**2) if eta else 1.0
        factor = ahead * gain + rho * there * (1 - alpha * gain) / sigma
        off, variance = factor * off, factor**2 * variance + there**2 * (1 - rho**2)
    return -((MEAN + off - TARGET) ** 2 + variance) / 2


@pytest.mark.parametrize("path", [VPLinear(), VarianceExploding()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.2])
def test_the_gap_of_a_gaussian_has_a_closed_form(path, eta, monkeypatch):
    monkeypatch.setattr("fdistill.sampling.base.LatentStreams", Corners)
    denoiser = Denoiser(GaussianMixture([[MEAN]], [STD]), X0Prediction(VarianceExploding()))
    times = torch.tensor(TIMES, dtype=torch.float64)
    levels = torch.cat([path.noise_ratio(times), times.new_zeros(1)])
    made = [generate(GDDIM(by), denoiser, cube()[:, :1], levels)[:, 0] for by in (eta, 0.0)]
    stochastic, deterministic = (-(x - TARGET).square() / 2 for x in made)
    exact = expected_reward(path, eta) - expected_reward(path, 0.0)
    assert Gap.of(stochastic, deterministic).mean == pytest.approx(exact, rel=1e-9, abs=1e-12)
    assert float(stochastic.mean()) == pytest.approx(expected_reward(path, eta), rel=1e-9)
    assert (abs(exact) > 1e-3) == (eta > 0)


def test_its_interval_holds_the_truth_as_often_as_it_says():
    """Latents that both rewards share, of 100 pairs each of 2,000 times."""
    generator = generator_for(0)
    shared, own = torch.randn(2, 2000, 100, generator=generator, dtype=torch.float64)
    gaps = [Gap.of(2 * a + 0.3 * b + 0.1, 2 * a) for a, b in zip(shared, own, strict=True)]
    assert sum(gap.low <= 0.1 <= gap.high for gap in gaps) / 2000 == pytest.approx(0.95, abs=0.015)


def look(seed, reward=0.0, spread=1.0, recall=0.8):
    """Of six conditions of 16 seeds."""
    generator = generator_for(seed)
    x = spread * torch.randn(6, 16, 8, generator=generator) + 2 * torch.eye(8)[:6, None]
    values = {"recall": recall + 0.01 * float(torch.randn((), generator=generator)), "precision": 1.0}
    return Look(reward + 0.1 * torch.randn(96, 1, generator=generator), {"x": condition_diversity(x)}, values)


START = [look(seed) for seed in range(6)]


def alarm(patience=1):
    return HackingAlarm(START, [f"class {number}" for number in range(6)], patience)


def judged(judge, found, turn=1):
    return judge.update(found, Gap.of(found.scores[:, 0], START[0].scores[:, 0]), turn)


def test_more_reward_with_less_diversity_is_hacking_and_neither_alone_is():
    assert judged(alarm(), look(50, reward=0.2, recall=0.1)).alarm
    assert judged(alarm(), look(50, reward=0.2, spread=0.1)).alarm
    assert not judged(alarm(), look(50, reward=0.2)).alarm
    lost = judged(alarm(), look(50, reward=-0.2, recall=0.1, spread=0.1))
    assert not lost.alarm
    assert lost.numbers["outside"] == 1


def test_further_draws_of_the_teacher_are_no_alarm():
    found = [judged(alarm(), look(100 + seed)).numbers for seed in range(20)]
    assert not any(numbers["outside"] for numbers in found)


def test_an_alarm_names_the_metric_and_waits_for_its_patience():
    judge = alarm(patience=2)
    assert not judged(judge, look(50, reward=0.2, recall=0.1), 10).alarm
    verdict = judged(judge, look(51, reward=0.2, recall=0.1), 20)
    assert verdict.alarm
    assert "recall" in verdict.reason
    restored = alarm(patience=2)
    restored.restore(judge.state())
    assert (
        judged(restored, look(52, reward=0.2, recall=0.1), 30).reason
        == judged(judge, look(52, reward=0.2, recall=0.1), 30).reason
    )
