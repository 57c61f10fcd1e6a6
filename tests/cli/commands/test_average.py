"""fdistill average: the folder holds the average it says, of a length that was given or that one half chose."""

import json
import shutil

import pytest
import torch
from cases import slow_but
from cli_runs import fdistill, last, one_error_line, student_arguments, succeeds, teacher_arguments, write_yaml

from fdistill.evaluation.choose_average import PARTS, TwoHalves
from fdistill.io.load import load_model
from fdistill.training.averaging.snapshots import FOLDER, Snapshots

TRACK = '--trainer.callbacks+={"class_path": "PowerAverages", "init_args": {"every_n_updates": 1}}'


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Run folder of a teacher of digits with 12 snapshots."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    succeeds(*teacher_arguments(folder, TRACK, "--model.num_steps=2"))
    return folder


@pytest.fixture(scope="module")
def averaged(teacher):
    """The teacher's average of length .1, which was tracked."""
    succeeds("average", teacher, "--length", 0.1, "--out", teacher.parent / "teacher")
    return teacher.parent / "teacher"


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """A features section that costs nothing."""
    return write_yaml(tmp_path_factory.mktemp("features") / "f.yaml", features={"class_path": "PixelFeatures"})


@pytest.fixture(scope="module")
def chosen(teacher, pixels, drawn):
    """What was printed, and the folder, of a choice among three lengths."""
    target = teacher.parent / "chosen"
    flags = ["--lengths", 0.2, 0.05, 0.1, "--n", 20, "--repeats", 2, "--features", pixels, "--out", target]
    return succeeds("average", teacher, *flags), target


def parameters(folder):
    return dict(load_model(folder).denoiser.named_parameters())


def test_a_length_that_was_tracked_comes_out_as_it_was_stored(teacher, averaged):
    snapshots = Snapshots(teacher / FOLDER)
    stored = snapshots.average(snapshots.combination(0.1))
    found = parameters(averaged)
    assert found.keys() == stored.keys()
    ema = dict(load_model(last(teacher)).denoiser.named_parameters())
    assert all(torch.equal(found[name], value) for name, value in stored.items())
    assert any(not torch.equal(ema[name], value) for name, value in stored.items())


def test_the_folder_remembers_the_run_and_its_average(teacher, averaged):
    facts = load_model(averaged).facts
    average = facts.pop("average")
    assert facts == load_model(last(teacher)).facts
    assert (average["length"], average["updates"]) == (0.1, 12)
    assert average["residual"] < 1e-6
    assert "length" in (averaged / "README.md").read_text()


def test_the_folder_is_sampled_like_any_other(averaged, tmp_path):
    assert "wrote 2 samples" in succeeds("sample", "--checkpoint", averaged, "--n", 2, "--out", tmp_path / "a.png")


def test_a_student_learns_from_the_folder_and_is_averaged_itself(averaged, tmp_path):
    succeeds(*student_arguments(tmp_path / "run", averaged, TRACK, "--trainer.max_steps=3"))
    said = succeeds("average", tmp_path / "run", "--length", 0.07)
    assert f"wrote {tmp_path}/run/average: the average of length 0.07 after 3 updates" in said
    model = load_model(tmp_path / "run" / "average")
    assert (model.kind, model.facts["teacher"]) == ("student", str(averaged))


def test_the_choosing_half_chooses_and_the_table_shows_every_length_and_the_ema(chosen):
    said, target = chosen
    report = json.loads(target.with_name("chosen.json").read_text())
    values = {row["length"]: row["choosing"]["frechet_distance"] for row in report["lengths"]}
    assert list(values) == [0.05, 0.1, 0.2]
    assert report["best"] == min(values, key=values.get)
    assert (report["n"], report["repeats"], report["updates"], report["snapshots"]) == (20, 2, 12, 24)
    assert all(
        f"{row[part]['frechet_distance']:.4f}" in said for row in (report["ema"], *report["lengths"]) for part in PARTS
    )
    assert "the run's EMA" in said
    assert f"{report['best']:g} chosen" in said
    assert target.with_name("chosen.png").stat().st_size > 10_000


@pytest.mark.parametrize("best", slow_but([0.05, 0.1, 0.2], 0.1))
def test_the_folder_holds_the_length_that_was_chosen(teacher, pixels, tmp_path, best, monkeypatch):
    def rows(halves, name, source):
        value = 1.0 if name.endswith(f" {best:g}") else 2.0
        return {part: [{"frechet_distance": value}] for part in PARTS}

    monkeypatch.setattr(TwoHalves, "rows", rows)
    flags = ["--lengths", 0.2, 0.05, 0.1, "--features", pixels, "--repeats", 1, "--out", tmp_path / "out"]
    succeeds("average", teacher, *flags)
    snapshots = Snapshots(teacher / FOLDER)
    wanted = snapshots.average(snapshots.combination(best))
    assert all(torch.equal(value, wanted[name]) for name, value in parameters(tmp_path / "out").items())
    fact = load_model(tmp_path / "out").facts["average"]
    assert (fact["length"], fact["chosen_by"]["lengths"]) == (best, [0.05, 0.1, 0.2])


def test_without_lengths_the_tracked_ones_and_a_grid_around_them_are_measured(teacher, pixels, tmp_path):
    run = shutil.copytree(teacher, tmp_path / "run")
    for file in sorted((run / FOLDER).iterdir())[:-1]:
        file.unlink()
    data = write_yaml(tmp_path / "d.yaml", data={"class_path": "Digits", "init_args": {"split_seed": 1}})
    succeeds("average", run, "--n", 6, "--repeats", 1, "--features", pixels, "--data", data, "--metric", "recall")
    report = json.loads((run / "average.json").read_text())
    assert [row["length"] for row in report["lengths"]] == [0.04, 0.05, 0.06, 0.08, 0.1, 0.12]
    assert (report["metric"], report["data"]["init_args"]["split_seed"]) == ("recall", 1)


def test_a_poor_reconstruction_is_said_with_its_residual(teacher, tmp_path):
    run = shutil.copytree(teacher, tmp_path / "run")
    for file in sorted((run / FOLDER).iterdir())[:-1]:
        file.unlink()
    said = succeeds("average", run, "--length", 0.03)
    assert "expected a residual of at most 0.1; store more snapshots" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--length", 0.1, "--n", 20], "nothing is measured: got --n too"),
        (["--length", 0.001], "store more, or track it"),
        (["--length", 0.5], "expected one in (0, 0.2887]"),
        (["--metric", "fid"], "expected one of ['accuracy'"),
        (["--lengths", "short"], "lengths"),
        (["--n", 251], "expected 6 <= n <= 250, got 251"),
        (["--device", "cuda:7"], "there is no device"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(teacher, pixels, flags, says, tmp_path):
    features = [] if "--length" in flags else ["--features", pixels]
    assert says in one_error_line(fdistill("average", teacher, *flags, *features, "--out", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_snapshots_says_how_to_get_them(tmp_path):
    assert "add it to the callbacks of the run" in one_error_line(fdistill("average", tmp_path, "--length", 0.1))
