"""What is measured of pictures of captions: real ones are read rightly, and one picture for all seeds has no spread."""

import math

import pytest
import torch
from tiny_runs import mlp

from fdistill.data import CaptionedDigits
from fdistill.data.captioned_digits import held_out_captions
from fdistill.evaluation.caption_evaluation import _models, one_step_row, teacher_row
from fdistill.evaluation.caption_rows import CaptionMetrics, caption_sets, spread
from fdistill.evaluation.features import CaptionFeatures
from fdistill.evaluation.features import captions as judge
from fdistill.models.guidance import Guidance
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import KarrasGrid

pytestmark = pytest.mark.system  # trains a judge

SEEDS = 4


@pytest.fixture(scope="module")
def measured():
    pytest.importorskip("transformers")
    data = CaptionedDigits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "STEPS", 150)
        return data, CaptionMetrics(data, CaptionFeatures(), 0), caption_sets(data, SEEDS, 0)


def test_the_teacher_beside_a_student_is_guided_as_it_was_while_that_learned():
    own = Guidance(3.0, rescale=0.5)
    teacher = GenerativeModel(mlp(num_classes=2), "teacher", KarrasGrid(4, 0.1, 5.0).levels(), own)
    facts = {"guidance": 4.0, "guidance_interval": [0.3, 2.0], "guidance_rescale": 0.2}
    found = _models(GenerativeModel.student(mlp(num_classes=2), 5.0, facts), teacher)
    for row in (teacher_row, one_step_row):
        told, other = found[row(4.0)].guidance, found[row(2.0)].guidance
        assert (told.scale, told.sigma_low, told.sigma_high, told.rescale) == (4.0, 0.3, 2.0, 0.2)
        assert (other.scale, other.sigma_high, other.rescale) == (2.0, math.inf, 0.5)


def test_spread_is_the_standard_deviation_over_the_seeds_of_a_caption():
    same = torch.randn(3, 1, 2, 4, 4).expand(3, 5, 2, 4, 4)
    assert spread(same) == pytest.approx(0, abs=1e-7)
    noise = torch.randn(40, 16, 500, generator=torch.Generator().manual_seed(0))
    captions = 100 * torch.arange(40.0)[:, None, None]  # captions differ, and that is no spread
    assert float(spread(captions + 0.3 * noise)) == pytest.approx(0.3 * 0.9835, rel=0.01)  # E[s] of 16 numbers
    with pytest.raises(ValueError, match="two"):
        spread(same[:, :1])


def test_the_sets_are_shown_and_new_captions_and_their_images_are_apart(measured):
    data, _, sets = measured
    assert torch.equal(sets["new"].numbers, held_out_captions())
    assert set(sets["shown"].numbers.tolist()) <= set(data.train_samples.labels.tolist())
    assert len(sets["shown"].numbers.unique()) == 30
    for of in sets.values():
        assert len(of.reference) == len(of.floor) == len(of.wanted) == 30 * SEEDS
        both = torch.cat([of.reference, of.floor]).flatten(1)
        assert len(both.unique(dim=0)) == len(both)


def test_real_images_are_what_their_captions_say_and_vary_as_real_images(measured):
    _, metrics, sets = measured
    for of in sets.values():
        row = metrics.row(of.floor, of)
        assert row["accuracy_colours"] > 0.9
        assert row["accuracy_digit"] > 0.6
        assert row["accuracy"] <= min(row["accuracy_colours"], row["accuracy_digit"])
        assert row["spread"] == pytest.approx(float(spread(of.reference.unflatten(0, (-1, SEEDS)))), rel=0.1)
        assert metrics.row(of.reference, of)["frechet_distance"] == pytest.approx(0, abs=1e-4)


def test_one_picture_for_all_seeds_is_accurate_and_has_no_spread(measured):
    _, metrics, sets = measured
    of = sets["shown"]
    one = of.floor.unflatten(0, (-1, SEEDS))[:, :1].expand(-1, SEEDS, -1, -1, -1).flatten(0, 1)
    row, real = metrics.row(one, of), metrics.row(of.floor, of)
    assert row["accuracy_colours"] > 0.9
    assert row["spread"] == pytest.approx(0, abs=1e-7)
    assert row["vendi_by_caption"] == pytest.approx(1, abs=1e-3)
    assert row["vendi_by_caption_patches"] == pytest.approx(1, abs=1e-3)
    assert row["recall"] < real["recall"]


def test_pictures_of_other_captions_are_wrong(measured):
    _, metrics, sets = measured
    of = sets["shown"]
    assert metrics.row(of.floor.roll(7 * SEEDS, 0), of)["accuracy"] < 0.1
