"""The generators in checkpoints/ are small, load, and make what they are asked for."""

import pytest
import torch
from repository import ROOT

from fdistill.data import Digits
from fdistill.evaluation.features import ClassifierFeatures
from fdistill.io.load import load_model

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


@pytest.mark.parametrize("folder", sorted(FOLDERS["student"].parent.glob("*/")), ids=lambda folder: folder.name)
def test_it_is_below_two_megabytes_and_has_a_card_with_its_numbers(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    card = (folder / "README.md").read_text()
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert "frechet_distance" in card or "Fréchet" in card
