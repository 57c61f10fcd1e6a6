"""fdistill evaluate: from a .ckpt or a folder, with a teacher or without, on the run's data or other data."""

import json
from unittest import mock

import pytest
from cli_runs import fdistill, one_error_line, succeeds, write_yaml
from markupsafe import escape
from PIL import Image

from fdistill.cli.commands import evaluate as evaluate_command
from fdistill.evaluation.features import PixelFeatures
from fdistill.io.export import export_folder
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM

QUICK = ["--n", 20, "--repeats", 1, "--bootstrap", 0]


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_report_has_student_teacher_floor_and_how_it_was_made(evaluation):
    report = report_of(evaluation)
    assert {"student", "teacher", "floor", "class_gaussian"} <= set(report)
    assert (report["n"], report["repeats"], report["teacher_evaluations"]) == (60, 2, 35)
    assert "classifier" in report["features"]
    assert report["data"]["class_path"] == "fdistill.data.Digits"
    assert report["speedup"] > 1
    assert report["floor"]["frechet_distance"] < report["student"]["frechet_distance"]


def test_page_and_pictures_lie_beside_the_report(evaluation):
    names = {path.name for path in evaluation.iterdir()}
    pictures = {"samples.png", "intervals.png", "spectra.png", "classes.png", "nearest.png"}
    assert names == pictures | {"report.json", "index.html", "training.html"}
    page = (evaluation / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert str(escape(report_of(evaluation)["verdict"])) in page


def test_folder_measures_like_its_checkpoint(exported, evaluation, tmp_path):
    succeeds(
        "evaluate", "--checkpoint", exported, "--n", 60, "--repeats", 2, "--bootstrap", 0, "--out", tmp_path / "out"
    )
    first, second = report_of(evaluation), report_of(tmp_path / "out")
    for row in ("student", "teacher", "floor"):
        assert first[row].keys() == second[row].keys()
        numbers = {name: value for name, value in first[row].items() if isinstance(value, float)}
        assert {name: second[row][name] for name in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-3)
        assert second[row]["missing_modes"] == first[row]["missing_modes"]


def test_without_a_teacher(teacher_checkpoint, tmp_path):
    out = succeeds("evaluate", "--checkpoint", teacher_checkpoint, *QUICK, "--out", tmp_path / "out")
    assert "measured without a teacher: --teacher CHECKPOINT adds one" in out
    report = report_of(tmp_path / "out")
    assert "teacher" not in report
    assert report["speedup"] is None


def test_no_report_among_the_images_that_are_measured(student_checkpoint, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(20):
        Image.new("L", (8, 8), 10 * i).save(images / f"{i}.png")
    data = write_yaml(
        tmp_path / "data.yaml",
        data={"class_path": "ImageFolder", "init_args": {"folder": str(images), "resolution": 8}},
    )
    for source, out in ((images, images), (images, images / "below"), (student_checkpoint, images)):
        line = one_error_line(fdistill("evaluate", "--checkpoint", source, "--data", data, "--out", out))
        assert f"{out} lies in {images}, whose images are measured" in line
    assert len(list(images.iterdir())) == 20


def test_a_report_that_cannot_be_drawn_leaves_the_older_one(monkeypatch, tmp_path):
    def breaks(*arguments):
        raise OSError("cannot write samples.png: No space left on device")

    monkeypatch.setattr(evaluate_command, "sample_grid_figure", breaks)
    (tmp_path / "index.html").write_text("older")
    report = {"student_evaluations": 1, "teacher_evaluations": 35}
    with pytest.raises(OSError, match="space"):
        evaluate_command._write(tmp_path, mock.Mock(report=report, samples={}), [], None)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


@pytest.fixture
def pixels(tmp_path):
    """A file of features that learn nothing."""
    chosen = {"class_path": "PixelFeatures", "init_args": {"max_values": 16}}
    return write_yaml(tmp_path / "features.yaml", features=chosen)


def test_on_other_data_and_features_of_files(student_checkpoint, pixels, tmp_path):
    data = write_yaml(tmp_path / "data.yaml", data={"class_path": "Digits", "init_args": {"split_seed": 7}})
    files = ("--data", data, "--features", pixels, "--out", tmp_path / "out")
    succeeds("evaluate", "--checkpoint", student_checkpoint, *files, *QUICK)
    report = report_of(tmp_path / "out")
    assert report["data"]["init_args"]["split_seed"] == 7
    assert report["features"].startswith("pixels averaged down to 4 x 4")
    assert report["student"]["accuracy"] is None
    assert report["student"]["intervals"] == {}


def test_data_file_may_be_the_runs_configuration(student_run, student_checkpoint, pixels, tmp_path):
    files = ("--data", student_run / "config.yaml", "--features", pixels, "--out", tmp_path / "out")
    succeeds("evaluate", "--checkpoint", student_checkpoint, *files, *QUICK)
    assert report_of(tmp_path / "out")["data"] == report_of(tmp_path / "out")["student_facts"]["data"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--n=501"], "expected 12 <= n <= 500, got 501"),
        (["--n=11"], "expected 12 <= n <= 500, got 11"),
        (["--n=12", "--repeats=0"], "repeats is at least 1: got 0"),
        (["--n=12", "--bootstrap=-1"], "intervals come from splits into halves: expected 0 or more, got -1"),
        (["--device=abacus"], "device is cpu, cuda"),
        (["--teacher=nowhere"], "no checkpoint at nowhere"),
        (
            ["--features=nowhere.yaml"],
            "there is no file nowhere.yaml to read the features section from: check the path",
        ),
        (["--data=nowhere.yaml"], "there is no file nowhere.yaml to read the data section from: check the path"),
    ],
)
def test_mistake(flags, words, student_checkpoint, tmp_path):
    out = tmp_path / "out"
    assert words in one_error_line(fdistill("evaluate", "--checkpoint", student_checkpoint, *flags, "--out", out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is no valid YAML, line"),
        ("model: {}", "is no YAML file with a data section"),
        ("data: 3", "is no YAML file with a data section"),
        ("data: {class_path: '${nothing}'}", "has a reference that does not resolve"),
        ("data: {class_path: Digist}", "DecodedLatents, Digits, "),
        ("data: {class_path: os.system, init_args: {command: ls}}", "no GenerativeDataModule that is imported"),
        ("data: {class_path: Digits, init_args: {colour: red}}", "unexpected keyword argument 'colour'"),
        (
            "data: {class_path: StackedDigits}",
            "the student makes samples (1, 8, 8) of 10 classes, the data has (3, 8, 8)",
        ),
    ],
)
def test_data_file_that_does_not_fit(text, words, student_checkpoint, tmp_path):
    (tmp_path / "data.yaml").write_text(text)
    arguments = ["--checkpoint", student_checkpoint, "--data", tmp_path / "data.yaml", "--out", tmp_path / "out"]
    assert words in one_error_line(fdistill("evaluate", *arguments))
    assert not (tmp_path / "out").exists()


class BorrowedFeatures(PixelFeatures):
    """A class that a user's own module would define."""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {class_path: Digits}", "is no YAML file with a features section of class_path and init_args"),
        ("features: {class_path: 3}", "is no YAML file with a features section of class_path and init_args"),
        ("features: {class_path: os.system}", "class_path names an imported feature extractor: expected one of"),
        ("features: {class_path: PixelFeatures, init_args: {colour: red}}", "does not take these arguments"),
        ("features: {class_path: PixelFeatures, init_args: {max_values: many}}", "does not take these arguments"),
        ("features: {class_path: PixelFeatures, init_args: [1]}", "does not take these arguments"),
        ("features: {class_path: PixelFeatures, init_args: {max_values: 0}}", "max_values of an image: expected >= 1"),
        (
            f"features: {{class_path: {__name__}.BorrowedFeatures, init_args: {{max_values: 0}}}}",
            "expected >= 1, got 0",
        ),
    ],
)
def test_features_file_that_does_not_fit(text, words, student_checkpoint, tmp_path):
    (tmp_path / "features.yaml").write_text(text)
    arguments = ["--features", tmp_path / "features.yaml", "--out", tmp_path / "out"]
    assert words in one_error_line(fdistill("evaluate", "--checkpoint", student_checkpoint, *arguments))
    assert not (tmp_path / "out").exists()


def test_output_below_a_file_is_refused_before_measuring(student_checkpoint, tmp_path):
    (tmp_path / "file").write_text("keep me")
    line = one_error_line(fdistill("evaluate", "--checkpoint", student_checkpoint, "--out", tmp_path / "file" / "out"))
    assert "is a file; name another place" in line


def test_model_that_remembers_no_data(tmp_path):
    model = GenerativeModel.student(Denoiser(MLP(width=8, depth=2), EDM(0.5)), 2.0)
    line = one_error_line(fdistill("evaluate", "--checkpoint", export_folder(model, tmp_path / "model")))
    assert line == "this model does not say what data it was trained on: give --data FILE.yaml"
