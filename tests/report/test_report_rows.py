"""What a row of the report says about sets whose quality is known."""

import json

import pytest
import torch
from sklearn.datasets import load_digits

from fdistill.features import ClassifierFeatures, PixelFeatures
from fdistill.report import average_rows, measure, per_class_gaussian, write_json


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.from_numpy(labels).long()[order]


@pytest.fixture(scope="module")
def extractor(digits):
    features = ClassifierFeatures()
    features.prepare(digits[0][:1297], digits[1][:1297], 10, seed=0)
    return features


def test_the_training_set_measured_against_itself_is_perfect(digits, extractor):
    x, y = digits[0][:1297], digits[1][:1297]
    row = measure(extractor, x, y, x, 10)
    assert row["frechet_distance"] < 1e-9
    assert row["precision"] == row["recall"] == 1
    assert row["accuracy"] > 0.99
    assert row["class_entropy"] > 0.99


def test_floor_beats_a_gaussian_per_class_beats_one_class(digits, extractor):
    x, y = digits
    real, held_out = x[:500], x[1297:]
    generator = torch.Generator().manual_seed(0)
    sample = per_class_gaussian(x[:1297], y[:1297], 10)
    floor = measure(extractor, real, y[:500], held_out, 10)
    gaussian = measure(extractor, sample(y[1297:], generator), y[1297:], held_out, 10)
    collapsed = measure(extractor, x[:1297][y[:1297] == 3], None, held_out, 10)
    assert 1.5 * floor["frechet_distance"] < gaussian["frechet_distance"] < 0.1 * collapsed["frechet_distance"]
    assert floor["recall"] > gaussian["recall"] + 0.05 > collapsed["recall"] + 0.5
    assert collapsed["class_entropy"] < 0.05
    assert collapsed["accuracy"] is None
    assert collapsed["vendi"] < 0.7 * floor["vendi"]


def test_accuracy_counts_the_labels_asked_for(digits, extractor):
    x, y = digits[0][:1000], digits[1][:1000]
    half_wrong = torch.where(torch.arange(1000) % 2 == 0, y, (y + 1) % 10)
    assert measure(extractor, x, half_wrong, x, 10)["accuracy"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("shape", [(2,), (1, 6, 6), (3, 40, 40)])
def test_samples_without_classes_are_compared_by_their_values(shape):
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 60, *shape, generator=generator)
    extractor = PixelFeatures()
    extractor.prepare(x, None, None, seed=0)
    row = measure(extractor, x, None, x, None)
    assert row["frechet_distance"] < 1e-9
    assert row["accuracy"] is row["class_entropy"] is None
    assert measure(extractor, other, None, x, None)["frechet_distance"] > 1e-3


def test_broken_samples_stop_the_measurement(digits, extractor):
    x = digits[0][:100].clone()
    with pytest.raises(ValueError, match=r"expected \[n, 1, 8, 8\]"):
        measure(extractor, x[:, :, :4], None, x, 10)
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="got 1 of 100"):
        measure(extractor, x, None, digits[0][:100], 10)


def test_an_average_is_the_mean_with_the_range_of_the_distance():
    first = {"frechet_distance": 1.0, "precision": 0.5, "recall": 0.0, "accuracy": None, "class_entropy": 1, "vendi": 4}
    second = {**first, "frechet_distance": 2.0, "recall": 1.0}
    mean = average_rows([first, second])
    assert mean["frechet_distance"] == 1.5
    assert mean["frechet_distance_range"] == [1.0, 2.0]
    assert mean["recall"] == mean["precision"] == 0.5
    assert mean["accuracy"] is None
    with pytest.raises(ValueError, match="at least one row"):
        average_rows([])


def test_json_comes_back_equal_and_refuses_what_json_cannot_hold(tmp_path):
    report = {"student": {"vendi": 7.25, "accuracy": None}, "features": "Fréchet", "n": 500}
    path = write_json(tmp_path / "deep" / "report.json", report)
    assert json.loads(path.read_text(encoding="utf-8")) == report
    with pytest.raises(ValueError, match="finite numbers"):
        write_json(path, {"student": {"vendi": float("nan")}})
    assert json.loads(path.read_text(encoding="utf-8")) == report
