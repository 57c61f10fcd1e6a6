"""The generators in checkpoints/ are small, load, and make what they are asked for."""

import pytest
import torch
from repository import ROOT

from fdistill.data import Digits
from fdistill.data.captioned_digits import COLOURS, caption_parts, captions
from fdistill.evaluation.features import ClassifierFeatures
from fdistill.io.load import load_model
from fdistill.io.stock_pipeline import prompt_condition

pytestmark = pytest.mark.system  # seconds, too many for make check

FOLDERS = {name: ROOT / "checkpoints" / f"digits-{name}" for name in ("student", "teacher")}


@pytest.fixture(scope="module")
def extractor():
    real, features = Digits().train_samples.copied(), ClassifierFeatures()
    features.prepare(real.x, real.classes, 10, seed=3)
    return features


@pytest.mark.parametrize(("name", "evaluations"), [("student", 1), ("teacher", 35)])
def test_it_makes_the_digits_it_is_asked_for(name, evaluations, extractor):
    model = load_model(FOLDERS[name])
    assert (model.kind, model.evaluations, model.num_classes) == (name, evaluations, 10)
    labels = model.labels(200)
    read = extractor.classify(extractor.extract(model.sample(model.noise(200, seed=0), labels)))
    assert (read == labels).double().mean() > 0.93


def test_the_fashion_student_makes_a_picture_of_each_class_in_one_evaluation():
    model = load_model(FOLDERS["student"].parent / "fashion-student")
    assert (model.kind, model.evaluations, model.num_classes) == ("student", 1, 10)
    x = model.sample(model.noise(100, seed=0), model.labels(100)).view(10, 10, -1)  # sample, class
    means = x.mean(0)
    between = torch.cdist(means, means).sum() / 90
    assert x.shape[2] == 28 * 28
    assert x[:, 1].sub(means[1]).norm(dim=1).mean() < between  # trousers are like trousers


def test_the_captions_student_draws_what_prompts_say():
    pytest.importorskip("transformers")
    model = load_model(FOLDERS["student"].parent / "captions-student")
    assert (model.kind, model.evaluations) == ("student", 1)
    texts, parts = captions()[::3], caption_parts()[::3]
    x = model.decode(model.sample(model.noise(len(texts), seed=0), prompt_condition(model, texts, len(texts))))
    palette = 2 * torch.tensor(list(COLOURS.values())) - 1
    corner = x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].median(dim=2).values  # where hardly a digit has ink
    assert (torch.cdist(corner, palette).argmin(1) == parts[:, 2]).double().mean() > 0.95
    ground, colour = (palette[parts[:, k]][:, :, None, None] for k in (2, 1))
    step = colour - ground
    ink = ((x - ground) * step).sum(1) / step.square().sum(1)
    digits = Digits().train_samples
    means = torch.stack([digits.x[digits.labels == k].mean(0).flatten() for k in range(10)])
    read = torch.cdist(2 * ink.flatten(1) - 1, means).argmin(1)
    assert (read == parts[:, 0]).double().mean() > 0.8  # of real digits this rule reads nine in ten
    with pytest.raises(ValueError, match="does not know purple, 漢"):
        prompt_condition(model, ["a red three", "a purple three 漢"], 2)


@pytest.mark.parametrize("folder", sorted(FOLDERS["student"].parent.glob("*/")), ids=lambda folder: folder.name)
def test_it_is_below_three_megabytes_and_has_a_card_with_its_numbers(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    card = (folder / "README.md").read_text()
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert "frechet_distance" in card or "Fréchet" in card
