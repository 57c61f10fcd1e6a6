"""fdistill diagnose: a teacher that crowds its deterministic samples is found out, an exact one acquitted."""

import json

import pytest
import torch
import yaml
from cli_runs import fdistill, one_error_line, succeeds
from crowded_teacher import Crowded, ring_data, ring_teacher

from fdistill.evaluation.features import PixelFeatures
from fdistill.io.checkpoints import model_record
from fdistill.models.networks import GaussianMixture

QUICK = ["--n", 250, "--repeats", 2]


def saved(model, path):
    torch.save({"state_dict": {}, "fdistill": model_record(model)}, path)
    return path


@pytest.fixture(scope="module")
def diagnoses(tmp_path_factory):
    """What the command wrote of an exact and of a crowded teacher, and printed."""
    folder, found = tmp_path_factory.mktemp("diagnoses"), {}
    for kind in (GaussianMixture, Crowded):
        path, out = saved(ring_teacher(kind), folder / f"{kind.__name__}.ckpt"), folder / kind.__name__
        printed = succeeds("diagnose", path, "--out", out, *QUICK)
        found[kind] = json.loads((out / "diagnosis.json").read_text()), printed, out
    return found


def test_an_exact_teacher_has_no_excess_and_no_collapse(diagnoses):
    report, printed, _ = diagnoses[GaussianMixture]
    columns = report["see_saw"]
    assert all(e < 0.02 + 4 * s for e, s in zip(columns["excess"], columns["standard_error"], strict=True))
    assert report["collapse"] is False
    assert report["verdict"].startswith("No collapse found")
    assert report["verdict"] in printed


def test_a_teacher_that_is_wrong_at_high_noise_has_its_excess_there_and_its_deterministic_samples_crowd(diagnoses):
    report, printed, _ = diagnoses[Crowded]
    columns = report["see_saw"]
    wrong = [e > 0.05 + 3 * s for e, s in zip(columns["excess"], columns["standard_error"], strict=True)]
    assert wrong == [sigma > 3 for sigma in columns["sigma"]]
    assert report["collapse"] is True
    assert "recall" in report["verdict"]
    assert "Try: sample with GDDIM" in printed
    assert report["ode"]["recall"]["mean"] < report["sde"]["recall"]["mean"] - 0.1


def test_all_rows_are_measured_alike_with_their_ranges(diagnoses):
    report, _, _ = diagnoses[Crowded]
    assert report["real"].keys() == report["sde"].keys() == report["ode"].keys() >= {"tid", "anchored_tid", "recall"}
    for row in ("real", "sde", "ode"):
        for number in report[row].values():
            low, high = number["range"]
            assert low <= number["mean"] <= high
            assert number["error"] is None or number["error"] > 0
    assert report["evaluations"] == {"sde": 35, "ode": 35}
    assert (report["n"], report["repeats"]) == (250, 2)


def test_there_is_one_picture(diagnoses):
    _, printed, out = diagnoses[Crowded]
    assert sorted(path.name for path in out.iterdir()) == ["diagnosis.json", "diagnosis.png"]
    assert (out / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    assert str(out / "diagnosis.png") in printed


def test_data_can_be_given_and_has_to_be_where_it_is_not_remembered(tmp_path):
    model = ring_teacher()
    model.facts.clear()
    path = saved(model, tmp_path / "teacher.ckpt")
    assert "give --data FILE.yaml" in one_error_line(fdistill("diagnose", path, "--out", tmp_path / "out"))
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({"data": ring_data().spec()}), encoding="utf-8")
    more = ["--data", file, "--n", 40, "--repeats", 1, "--steps", 4, "--eta", 0.5]
    succeeds("diagnose", path, "--out", tmp_path / "out", *more)
    report = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert report["evaluations"] == {"sde": 7, "ode": 7}
    assert report["eta"] == 0.5


def test_a_student_is_refused_in_one_line_before_anything_is_written(student_checkpoint, tmp_path):
    outcome = fdistill("diagnose", student_checkpoint, "--out", tmp_path / "out")
    assert "give its teacher's checkpoint" in one_error_line(outcome)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("drawn")
def test_pictures_are_diagnosed_as_pictures(teacher_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fdistill.evaluation.teacher_diagnosis.default_extractor", lambda *_: PixelFeatures()
    )  # learns nothing
    succeeds("diagnose", teacher_checkpoint, "--out", tmp_path, "--n", 30, "--repeats", 1, "--steps", 2)
    report = json.loads((tmp_path / "diagnosis.json").read_text())
    assert "exact_excess" not in report["see_saw"]
    assert (tmp_path / "diagnosis.png").stat().st_size > 10_000
