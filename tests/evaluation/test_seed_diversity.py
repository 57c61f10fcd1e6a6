"""The seed's share in the picture: patches see shapes alone, bands are the teacher's, the alarm names conditions."""

import pytest
import torch

from fdistill.core.random import generator_for
from fdistill.data import Digits, InMemorySplit
from fdistill.evaluation.features import PatchFeatures, PixelFeatures
from fdistill.evaluation.metrics import condition_diversity
from fdistill.evaluation.seed_diversity import SeedAlarm, SeedProbe
from fdistill.io.load import load_model

NAMES = [f"prompt {number}" for number in range(6)]


def normal(seed, spread=1.0, collapsed=()):
    """Samples [6, 16, 8] of six conditions about means of their own; those of the collapsed ones are one sample."""
    generator = generator_for(seed)
    x = torch.randn(6, 16, 8, generator=generator) * spread
    x[list(collapsed)] = x[list(collapsed), :1]
    return {"features": condition_diversity(x + 2 * torch.eye(8)[:6, None])}


def alarm(patience=1, draws=4, **changes):
    return SeedAlarm([normal(seed) for seed in range(draws)], NAMES, patience, **changes)


@pytest.fixture(scope="module")
def patches():
    extractor = PatchFeatures()
    extractor.prepare(Digits().train_samples, None, None, 0)
    return extractor


def test_patches_are_blind_to_brightness_and_contrast(patches):
    x = Digits().train_samples.first(20).x
    same = patches.raw_features(x / 2 + 0.4)
    likeness = torch.cosine_similarity(same, patches.raw_features(x))
    assert likeness.min() > 0.99
    assert torch.cosine_similarity(patches.raw_features(x[1:]), patches.raw_features(x[:-1])).max() < 0.9


def test_patches_are_blind_to_colour():
    x = Digits().train_samples.first(20).x
    tints = torch.tensor([[0.2, 0.5, 0.9], [0.9, 0.5, 0.2]])[:, None, :, None, None]
    first, second = (PatchFeatures().raw_features(x * tint) for tint in tints)
    assert torch.cosine_similarity(first, second).min() > 0.999


def test_samples_without_patches_are_refused():
    with pytest.raises(ValueError, match="images"):
        PatchFeatures().prepare(torch.randn(8, 2), None, None, 0)


def test_further_draws_of_the_teacher_are_inside_their_bands():
    judge = alarm()
    verdicts = [judge.update(normal(100 + seed)) for seed in range(50)]
    assert not any(verdict.alarm for verdict in verdicts)
    assert all(abs(verdict.numbers["vendi_ratio_features"] - 1) < 0.15 for verdict in verdicts)


def test_conditions_whose_seed_changes_nothing_are_named():
    verdict = alarm().update(normal(7, collapsed=[1, 4]))
    assert verdict.alarm
    assert verdict.collapsed == [1, 4]
    assert "prompt 1" in verdict.reason
    assert "prompt 4" in verdict.reason
    assert "prompt 2" not in verdict.reason
    assert verdict.numbers["collapsed_share"] == pytest.approx(2 / 6)


def test_a_little_less_everywhere_is_seen_on_the_whole():
    verdict = alarm().update(normal(7, spread=0.6))
    assert verdict.alarm
    assert verdict.numbers["vendi_ratio_features"] < 0.85


def test_an_alarm_waits_for_its_patience():
    judge = alarm(patience=2)
    assert [judge.update(normal(seed, collapsed=[0])).alarm for seed in range(3)] == [False, True, True]
    assert judge.update(normal(8)).alarm is False


def test_bands_need_two_draws():
    with pytest.raises(ValueError, match="draws"):
        alarm(draws=1)
    with pytest.raises(ValueError, match="tolerance"):
        alarm(tolerance=1.0)


def test_ranks_together_measure_what_one_measures():
    data, student = Digits(), load_model("checkpoints/digits-student")
    probe = SeedProbe(data.named_conditions(3), {"pixels": PixelFeatures()}, seeds=4)
    probe.prepare(InMemorySplit(data.train_samples.first(200).x, torch.zeros(200, dtype=torch.int64)), 0)
    whole = probe.pictures(student, 5)
    parts = [probe.pictures(student, 5, rank, 2) for rank in range(2)]
    torch.testing.assert_close(torch.stack(parts, 1).flatten(0, 1), whole, rtol=1e-4, atol=1e-5)
    assert probe.names == ["class 0", "class 4", "class 9"]  # evenly over all
    assert probe.measure(whole)["pixels"].vendi.shape == (3,)
    with pytest.raises(ValueError, match="seeds"):
        SeedProbe((probe.condition, probe.names), probe.spaces, seeds=1)
