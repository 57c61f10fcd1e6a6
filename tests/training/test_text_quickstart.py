"""The whole of `make text-quickstart` in a few turns: teacher, pipeline, prompts, student, report, stock diffusers."""

import json

import diffusers
import numpy as np
import pytest
import torch
from cli_runs import CONFIGS, last, one_error_line, succeeds
from cli_runs import fdistill as command

import fdistill
from fdistill.data import Digits
from fdistill.data.captioned_digits import captions

FILES = CONFIGS / "text_quickstart"
SMALL = ("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", 0, "--data.batch_size", 4)
TINY = {"widths": "[8,16]", "text_width": 16, "text_layers": 1, "heads": 2, "groups": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with the pipeline of a teacher, the teacher, and the run and report of a student."""
    from fdistill.evaluation.features import captions as judge

    root = tmp_path_factory.mktemp("text")
    fit = ("fit", "--config", CONFIGS / "trainer.yaml", "--config")
    tiny = [part for name, value in TINY.items() for part in (f"--model.network.{name}", value)]
    run = ("--trainer.default_root_dir", root / "train-teacher", "--trainer.max_steps", 2)
    succeeds(*fit, FILES / "teacher.yaml", *run, *SMALL, *tiny)
    succeeds("export", last(root / "train-teacher"), root / "pipeline")
    succeeds("import", root / "pipeline", root / "teacher", "--num_steps", 2, "--guidance", 2)
    (root / "captions.txt").write_text("\n".join(captions()))
    encode = ("encode-prompts", root / "captions.txt", "--pipeline", root / "pipeline", "--out", root / "prompts")
    succeeds(*encode, "--numbers", "float32")
    run = ("--trainer.default_root_dir", root / "train-student", "--trainer.max_steps", 3)
    own = ("--model.teacher", root / "teacher", "--data.prompts", root / "prompts")
    succeeds(*fit, FILES / "student.yaml", *run, *own, *SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "STEPS", 20)
        succeeds("evaluate", "--checkpoint", last(root / "train-student"), "--out", root / "report", "--n", 60)
    return root


def test_the_report_has_student_teacher_and_its_first_step_for_shown_and_new_captions(made):
    report = json.loads((made / "report" / "report.json").read_text())
    guided = [f"{row}, guidance {scale}" for row in ("teacher", "teacher in one step") for scale in (1, 2, 4)]
    for rows in report["captions"].values():
        assert set(rows) == {"real", "student", *guided}
        # without guidance its two steps and its first one differ, and the same noise gives the student other pictures
        assert rows["teacher, guidance 1"]["spread"] != rows["teacher in one step, guidance 1"]["spread"]
    assert report["student"] == report["captions"]["shown"]["student"]
    assert report["teacher"] == report["captions"]["shown"]["teacher, guidance 2"]
    assert (report["student_evaluations"], report["teacher_evaluations"]) == (1, 4)
    assert {path.name for path in (made / "report").glob("*.png")} == {"shown.png", "new.png"}


def test_stock_diffusers_draws_the_students_pictures_in_one_step(made, tmp_path):
    checkpoint = last(made / "train-student")
    succeeds("export", checkpoint, tmp_path / "student", "--report", made / "report" / "report.json")
    prompt = captions()[7]
    succeeds("sample", "--checkpoint", checkpoint, "--n", 1, "--prompt", prompt, "--out", tmp_path / "ours.npz")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 1, "output_type": "np"}
    (theirs,) = pipeline(prompt, generator=torch.manual_seed(0), **call).images
    ours = np.load(tmp_path / "ours.npz")["samples"][0].transpose(1, 2, 0) / 2 + 0.5
    assert theirs.shape == (8, 8, 3)
    np.testing.assert_allclose(ours.clip(0, 1), theirs, atol=1e-5)
    assert "Fréchet" in (tmp_path / "student" / "README.md").read_text()


@pytest.mark.parametrize("wrong", [("--n", 61), ("--repeats", 2)])
def test_what_a_report_on_captions_has_no_use_for_is_one_line(made, tmp_path, wrong):
    outcome = command("evaluate", "--checkpoint", last(made / "train-student"), "--out", tmp_path / "x", *wrong)
    assert wrong[0].strip("-") in one_error_line(outcome)
    assert not (tmp_path / "x" / "report.json").exists()


@pytest.mark.slow
def test_in_python_the_report_is_that_of_the_command(made, monkeypatch):
    from fdistill.evaluation.features import captions as judge

    monkeypatch.setattr(judge, "STEPS", 20)
    student = fdistill.load(last(made / "train-student"))
    expected = json.loads((made / "report" / "report.json").read_text())
    assert fdistill.evaluate(student, n=60).report["captions"] == expected["captions"]
    with pytest.raises(ValueError, match="repeats"):
        fdistill.evaluate(student, repeats=2)


def test_other_reports_refuse_prompts_before_anything_is_computed(made):
    with pytest.raises(ValueError, match="encoder_hidden_states"):
        fdistill.evaluate(fdistill.load(made / "teacher"), data=Digits())
