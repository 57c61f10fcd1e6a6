"""What a row of the report says about sets whose quality is known."""

import json

import pytest
import torch
from sklearn.datasets import load_digits

from fdistill.core.atomic_files import write_json
from fdistill.evaluation.features import ClassifierFeatures, PixelFeatures
from fdistill.evaluation.report.class_gaussian import per_class_gaussian
from fdistill.evaluation.report.rows import average_rows, measure, per_class
from fdistill.evaluation.samples import Samples, joined

pytestmark = pytest.mark.system  # seconds, too many for make check


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.from_numpy(labels).long()[order]


@pytest.fixture(scope="module")
def extractor(digits):
    features = ClassifierFeatures(epochs=60)
    features.prepare(digits[0][:1297], digits[1][:1297], 10, seed=0)
    return features


def read(extractor, x, labels=None):
    """Samples as an evaluation reads them."""
    features = extractor.extract(x)
    return Samples(features, extractor.classify(features), labels)


def test_the_training_set_measured_against_itself_is_perfect(digits, extractor):
    x, y = digits[0][:1297], digits[1][:1297]
    row = measure(read(extractor, x, y), read(extractor, x, y), 10)
    assert row["frechet_distance"] < 1e-9
    assert row["precision"] == row["recall"] == row["coverage"] == row["mode_coverage"] == row["local_coverage"] == 1
    assert row["vendi_ratio"] == row["count_ratio"] == row["neighbour_distance_ratio"] == 1
    assert row["tid"] == row["anchored_tid"] == 0
    assert row["accuracy"] > 0.99
    assert row["class_entropy"] > 0.99


def test_floor_beats_a_gaussian_per_class_beats_one_class(digits, extractor):
    x, y = digits
    real, held_out = x[:500], x[1297:]
    generator = torch.Generator().manual_seed(0)
    sample = per_class_gaussian(x[:1297], y[:1297], 10)
    reference = read(extractor, held_out, y[1297:])
    floor = measure(read(extractor, real, y[:500]), reference, 10)
    gaussian = measure(read(extractor, sample(y[1297:], generator), y[1297:]), reference, 10)
    threes = x[:1297][y[:1297] == 3].repeat(5, 1, 1, 1)[:500]
    collapsed = measure(read(extractor, threes), reference, 10)
    assert 1.5 * floor["frechet_distance"] < gaussian["frechet_distance"] < 0.1 * collapsed["frechet_distance"]
    assert floor["recall"] > gaussian["recall"] + 0.05 > collapsed["recall"] + 0.5
    assert collapsed["class_entropy"] < 0.05
    assert collapsed["accuracy"] is None
    assert collapsed["vendi"] < 0.7 * floor["vendi"]
    assert collapsed["mode_coverage"] <= 0.2 < 1 == floor["mode_coverage"]
    assert collapsed["anchored_tid"] > 1 > 0.3 > floor["anchored_tid"]
    assert collapsed["kernel_distance"] > 10 * floor["kernel_distance_error"]


def test_accuracy_counts_the_labels_asked_for(digits, extractor):
    x, y = digits[0][:1000], digits[1][:1000]
    half_wrong = torch.where(torch.arange(1000) % 2 == 0, y, (y + 1) % 10)
    row = measure(read(extractor, x, half_wrong), read(extractor, x, y), 10)
    assert row["accuracy"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("shape", [(2,), (1, 6, 6), (3, 40, 40)])
def test_samples_without_classes_are_compared_by_their_values(shape):
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 60, *shape, generator=generator)
    extractor = PixelFeatures()
    extractor.prepare(x, None, None, seed=0)
    row = measure(read(extractor, x), read(extractor, x))
    assert row["frechet_distance"] < 1e-9
    assert row["accuracy"] is row["class_entropy"] is row["mode_coverage"] is None
    assert measure(read(extractor, other), read(extractor, x))["frechet_distance"] > 1e-3


def gaussian_samples(n, d=4, seed=0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Samples(x)


def test_broken_samples_stop_the_measurement():
    broken = gaussian_samples(100)
    broken.features[3, 0] = torch.nan
    with pytest.raises(ValueError, match="got 1 of 100"):
        measure(broken, gaussian_samples(100, seed=1))
    with pytest.raises(ValueError, match="generated"):
        measure(gaussian_samples(90), gaussian_samples(100))
    with pytest.raises(ValueError, match="samples"):
        measure(gaussian_samples(5), gaussian_samples(5, seed=1))
    with pytest.raises(ValueError, match="wanted"):
        Samples(torch.zeros(4, 2), wanted=torch.zeros(3))


def test_a_generator_of_one_sample_has_numbers_too():
    reference = gaussian_samples(40)
    one = Samples(torch.ones(40, 4, dtype=torch.float64))
    row = measure(one, reference)
    assert row["vendi"] == pytest.approx(1)
    assert row["in_batch_similarity"] == pytest.approx(1)
    assert row["neighbour_distance_ratio"] == 0
    assert row["excess_kurtosis"] is row["projection"] is None  # of constant features
    assert measure(reference, one)["neighbour_distance_ratio"] is None  # infinite


def test_copies_of_training_samples_are_counted_where_there_is_a_training_set():
    training = gaussian_samples(300).features
    generated = gaussian_samples(40, seed=1)
    generated.features[:10] = training[:10] + 1e-6
    row = measure(generated, gaussian_samples(40, seed=2), training=training)
    assert row["memorized_fraction"] >= 0.25
    assert measure(generated, gaussian_samples(40, seed=2))["memorized_fraction"] is None


def test_the_error_of_a_mean_of_paired_distances_is_theirs_over_root_n():
    generated, reference = gaussian_samples(50), gaussian_samples(50, seed=1)
    shift = torch.zeros(50, 4, dtype=torch.float64)
    shift[:, 0] = torch.arange(50) % 2  # distances 0 and 1
    row = measure(generated, reference, teacher=generated.features + shift)
    assert row["paired_distance"] == pytest.approx(0.5)
    assert row["paired_distance_error"] == pytest.approx((0.25 * 50 / 49 / 50) ** 0.5)


def test_classes_average_to_the_whole_and_a_dropped_class_has_no_recall():
    centres = 10 * torch.eye(3, dtype=torch.float64)
    labels = torch.arange(90) % 3
    reference, generated = gaussian_samples(90, d=3), gaussian_samples(90, d=3, seed=1)
    for side in (reference, generated):
        side.features, side.wanted = side.features + centres[labels], labels
    row, classes = measure(generated, reference), per_class(generated, reference, 3)
    for name in ("precision", "recall"):
        assert sum(classes[name]) / 3 == pytest.approx(row[name])
    generated.features = torch.where(
        (labels == 2)[:, None], generated.features - centres[2] + centres[1], generated.features
    )
    generated.wanted = labels.clamp(max=1)
    dropped = per_class(generated, reference, 4)
    assert dropped["recall"][2] == 0
    assert dropped["precision"][2:] == [None, None]
    assert dropped["recall"][3] is None


def test_a_union_keeps_classes_where_both_sides_have_them():
    first, second = gaussian_samples(3), gaussian_samples(2, seed=1)
    first.modes = second.modes = first.wanted = torch.arange(3)
    second.modes = torch.arange(2)
    both = joined(first, second)
    assert both.modes.tolist() == [0, 1, 2, 0, 1]
    assert both.wanted is None
    assert torch.equal(both.features[3:], second.features)


def test_an_average_is_the_mean_with_the_range_of_the_distance():
    first = {"frechet_distance": 1.0, "precision": 0.5, "recall": 0.0, "accuracy": None, "class_entropy": 1, "vendi": 4}
    second = {**first, "frechet_distance": 2.0, "recall": 1.0}
    mean = average_rows([first, second])
    assert mean["frechet_distance"] == 1.5
    assert mean["frechet_distance_range"] == [1.0, 2.0]
    assert mean["recall"] == mean["precision"] == 0.5
    assert mean["accuracy"] is None
    with pytest.raises(ValueError, match="row"):
        average_rows([])


def test_json_comes_back_equal_and_refuses_what_json_cannot_hold(tmp_path):
    report = {"student": {"vendi": 7.25, "accuracy": None}, "features": "Fréchet", "n": 500}
    path = write_json(tmp_path / "deep" / "report.json", report)
    assert json.loads(path.read_text(encoding="utf-8")) == report
    with pytest.raises(ValueError, match="finite"):
        write_json(path, {"student": {"vendi": float("nan")}})
    assert json.loads(path.read_text(encoding="utf-8")) == report
