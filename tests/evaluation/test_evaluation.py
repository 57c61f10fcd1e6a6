"""An evaluation finds out what was done to real samples before it was shown them."""

import json

import pytest
import torch

from fdistill.data import Digits, GaussianMixtureData
from fdistill.evaluation.evaluate import evaluate_models, samples_per_second, usual_repeats
from fdistill.evaluation.features import ClassifierFeatures, PixelFeatures
from fdistill.evaluation.sources import ModelSource
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM

pytestmark = pytest.mark.system  # seconds, too many for make check


class Resampled:
    """Samples drawn from a given set, and spoiled."""

    evaluations = None
    facts = {}

    def __init__(self, x, labels=None, spoil=lambda x: x, num_classes=0):
        self.x, self.own, self.spoil, self.num_classes = x, labels, spoil, num_classes
        self.sample_shape = tuple(x.shape[1:])

    def labels(self, n, seed, wanted=None):
        return None if self.own is None else self.own[self.chosen(n, seed)]

    def draw(self, n, seed, labels=None):
        return self.spoil(self.x[self.chosen(n, seed)])

    def chosen(self, n, seed):
        return torch.randint(len(self.x), (n,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def extractor():
    """Trained once; preparing it again would give the same."""
    features = ClassifierFeatures(epochs=10)
    prepare, prepared = features.prepare, []

    def once(*arguments):
        if not prepared:
            prepare(*arguments)
            prepared.append(True)

    features.prepare = once
    return features


def report_on(source, data, extractor, teacher=None, n=300, repeats=1, bootstrap=4):
    return evaluate_models(source, teacher, data, n, 0, repeats, bootstrap, extractor).report


def test_held_out_samples_have_no_fault_but_that_they_are_few(digits, extractor):
    held_out = digits.held_out_samples.copied()
    report = report_on(Resampled(held_out.x, held_out.classes, num_classes=10), digits, extractor)
    assert report["verdict"].startswith("Nothing is wrong")
    assert report["student"]["missing_modes"] == []
    assert report["student"]["mode_coverage"] == 1
    assert report["student"]["per_class"].keys() == {"precision", "recall"}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_dropped_classes_are_named(digits, extractor):
    held_out = digits.held_out_samples.copied()
    kept = (held_out.classes != 3) & (held_out.classes != 8)
    report = report_on(Resampled(held_out.x[kept]), digits, extractor, repeats=2)
    assert set(report["student"]["missing_modes"] + report["student"]["rare_modes"]) == {3, 8}
    assert report["student"]["mode_coverage"] == pytest.approx(0.8)
    assert report["student"]["mode_coverage"] < report["bands"]["mode_coverage"][0]
    assert "3" in report["verdict"]
    recall = report["student"]["per_class"]["recall"]
    assert max(recall[3], recall[8]) < min(value for i, value in enumerate(recall) if i not in (3, 8))


def test_training_samples_are_copies_and_their_neighbours_are_shown(digits, extractor):
    result = evaluate_models(Resampled(digits.train_samples.copied().x), None, digits, 100, 0, 1, 0, extractor)
    assert result.report["student"]["memorized_fraction"] == 1
    assert result.report["floor"]["memorized_fraction"] is None
    assert result.report["held_out"]["memorized_fraction"] < 0.05
    assert "100% of its samples are near copies" in result.report["verdict"]
    assert (result.copies.ratio == 0).all()
    torch.testing.assert_close(result.copies.generated, result.copies.training)


def test_noise_is_found_imprecise(digits, extractor):
    generator = torch.Generator().manual_seed(0)

    def noisy(x):
        return (x + 0.8 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)

    report = report_on(Resampled(digits.held_out_samples.copied().x, spoil=noisy), digits, extractor)
    assert report["student"]["precision"] < 0.7 * report["floor"]["precision"]
    assert "Precision" in report["verdict"]


def test_one_sample_alone_is_measured(digits, extractor):
    report = report_on(Resampled(digits.held_out_samples.copied().x[:1]), digits, extractor)
    assert report["student"]["vendi"] == pytest.approx(1, abs=1e-6)
    assert "It makes only 1 of 10 classes" in report["verdict"]


def test_the_floor_alone_is_inside_its_bands(digits, extractor):
    report = report_on(Resampled(digits.held_out_samples.copied().x), digits, extractor)
    for name, (low, high) in report["bands"].items():
        assert (low is None) != (high is None)
        value = report["floor"][name]
        assert (value > low) if high is None else (value < high)


def test_modes_of_points_are_read_by_the_data():
    data = GaussianMixtureData("ring", num_samples=400, num_held_out=300)
    x, modes = data.held_out_samples.copied().x, data.read_modes(data.held_out_samples.copied().x)
    result = evaluate_models(Resampled(x[modes < 4]), None, data, 200, 0, 1, 2)
    assert result.report["student"]["mode_coverage"] == 0.5
    assert result.report["student"]["missing_modes"] == [4, 5, 6, 7]
    assert "It makes only 4 of 8 classes: 4, 5, 6 and 7 are missing" in result.report["verdict"]
    assert result.report["floor"]["accuracy"] > 0.99
    assert set(result.spectra) == {"floor", "student"}
    assert all(float(shares.sum()) == pytest.approx(1) for shares in result.spectra.values())


def model(seed, num_classes=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ModelSource(GenerativeModel.student(Denoiser(MLP(width=8, depth=2), EDM(0.5)), 2.0))


def test_pairs_from_the_same_noise_are_compared_where_there_are_any():
    data = GaussianMixtureData("ring", num_samples=300, num_held_out=200)
    same = evaluate_models(model(0), model(0), data, 50, 0, 2, 0, PixelFeatures()).report
    assert same["student"]["paired_distance"] == 0
    assert same["teacher"]["paired_distance"] is None
    other = evaluate_models(model(0), model(1), data, 50, 0, 2, 3, PixelFeatures()).report
    low, high = other["student"]["intervals"]["paired_distance"]
    assert 0 < low < other["student"]["paired_distance"] < high
    points = Resampled(data.held_out_samples.copied().x)
    assert report_on(model(0), data, PixelFeatures(), teacher=points, n=50)["student"]["paired_distance"] is None


def test_broken_samples_are_told_with_their_owner(digits, extractor):
    broken = Resampled(digits.held_out_samples.copied().x, spoil=lambda x: x * torch.nan)
    with pytest.raises(ValueError, match="broken"):
        report_on(Resampled(digits.held_out_samples.copied().x), digits, extractor, teacher=broken, n=20)


def test_a_floor_needs_training_samples():
    data = GaussianMixtureData("ring", num_samples=40, num_held_out=100)
    with pytest.raises(ValueError, match="expected 12 <= n <= 40, got 50"):
        report_on(Resampled(data.held_out_samples.copied().x), data, PixelFeatures(), n=50)


def test_the_seed_decides_all():
    data = GaussianMixtureData("ring", num_samples=300, num_held_out=200)
    first, again, other = (
        evaluate_models(Resampled(data.held_out_samples.copied().x), None, data, 60, seed, 1, 3).report
        for seed in (0, 0, 1)
    )
    del first["seconds"], again["seconds"]
    assert first == again
    assert first["student"] != other["student"]


class Counted(ModelSource):
    """Counts its draws."""

    def __init__(self, model):
        super().__init__(model)
        self.drawn = []

    def draw(self, n, seed, labels=None):
        self.drawn += [n] if n > 4 else []  # fewer are timed
        return super().draw(n, seed, labels)


def test_a_teacher_is_drawn_once_for_all_its_students(tmp_path):
    def report(width, num_steps=4, batch_size=8, bootstrap=0):
        data = GaussianMixtureData("ring", num_samples=300, num_held_out=200, batch_size=batch_size)
        torch.manual_seed(0)
        teacher = Denoiser(MLP(2, width, 2), EDM(0.5))
        source = Counted(GenerativeModel.teacher(teacher, num_steps, 0.01, 5.0))
        student = Counted(GenerativeModel.student(Denoiser(MLP(2, 8, 2), EDM(0.5)), 2.0))
        features = PixelFeatures().keep_in(tmp_path)
        made = evaluate_models(student, source, data, 60, 0, 2, bootstrap, features)
        told = {name: row for name, row in made.report.items() if "second" not in name and name != "speedup"}
        return told, made, (len(student.drawn), len(source.drawn))

    first, pictures, drawn = report(8, bootstrap=2)
    again, read_pictures, drawn_again = report(8, batch_size=16, bootstrap=2)
    assert (drawn, drawn_again) == ((2, 2), (2, 0))
    assert again | {"data": 0} == first | {"data": 0}
    assert read_pictures.samples["teacher"].equal(pictures.samples["teacher"])
    assert report(12)[2] == (2, 2)
    assert report(8, 5)[2] == (2, 2)


def test_all_draws_together_are_bounded():
    assert [usual_repeats(n) for n in (12, 500, 5_000, 10_000, 50_000)] == [4, 4, 2, 1, 1]


class Timed:
    """Notes how many samples it is asked for, which take a while on the clock of a test."""

    def __init__(self, monkeypatch, seconds):
        self.asked, self.now, self.seconds = [], 0.0, seconds
        monkeypatch.setattr("fdistill.evaluation.evaluate.time.perf_counter", lambda: self.now)

    def labels(self, n, seed):
        return None

    def draw(self, n, seed, labels):
        self.asked.append(n)
        self.now += self.seconds


def test_speed_is_measured_on_few_samples_and_on_fewer_where_they_take_long(monkeypatch):
    monkeypatch.setattr("fdistill.evaluation.evaluate.FEW_TIMED", 50)
    monkeypatch.setattr("fdistill.evaluation.evaluate.TIMED", 500)
    fast, slow = (Timed(monkeypatch, seconds) for seconds in (0.5, 60.0))
    assert samples_per_second(slow, 10_000) == pytest.approx(50 / 60)
    assert slow.asked == [50, 50]
    monkeypatch.setattr("fdistill.evaluation.evaluate.time.perf_counter", lambda: fast.now)
    assert samples_per_second(fast, 20) == pytest.approx(20 / 0.5)
    assert fast.asked == [20] * 4
