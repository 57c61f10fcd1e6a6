"""The generators in checkpoints/ are small, load, and make the digits they are asked for."""

from pathlib import Path

import pytest

from fdistill.checkpoints import load_model
from fdistill.data import Digits
from fdistill.features import ClassifierFeatures

FOLDERS = {name: Path(__file__).parents[1] / "checkpoints" / f"digits-{name}" for name in ("student", "teacher")}


@pytest.fixture(scope="module")
def extractor():
    real, features = Digits().train_samples.copied(), ClassifierFeatures()
    features.prepare(real.x, real.labels, 10, seed=3)
    return features


@pytest.mark.parametrize(("name", "evaluations"), [("student", 1), ("teacher", 35)])
def test_it_makes_the_digits_it_is_asked_for(name, evaluations, extractor):
    model = load_model(FOLDERS[name])
    assert (model.kind, model.evaluations, model.num_classes) == (name, evaluations, 10)
    labels = model.labels(200)
    read = extractor.classify(extractor.extract(model.sample(model.noise(200, seed=0), labels)))
    assert (read == labels).double().mean() > 0.93


@pytest.mark.parametrize("name", FOLDERS)
def test_it_is_below_two_megabytes_and_has_a_card_with_its_numbers(name):
    files = [path for path in FOLDERS[name].rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert (
        "frechet_distance" in (FOLDERS[name] / "README.md").read_text()
        or "Fréchet" in (FOLDERS[name] / "README.md").read_text()
    )
