"""Two sets of classes at once, the digit and its ground, from training to export, by configuration alone."""

import json

import numpy as np
import pytest
import torch
from cli_runs import CONFIGS, fdistill, last, succeeds

from fdistill import load
from fdistill.data import ColouredDigits
from fdistill.models.condition import Condition

TINY = ("--trainer.limit_val_batches", 0, "--trainer.log_every_n_steps", 1, "--trainer.accelerator", "cpu")
SMALL = ("--data.batch_size", 16)


def fit(config, folder, steps, *more):
    """Run a configuration for a few steps, with a checkpoint every two."""
    files = ("--config", CONFIGS / "trainer.yaml", "--config", CONFIGS / "benchmarks" / f"{config}.yaml")
    run = ("--trainer.default_root_dir", folder, "--trainer.max_steps", steps)
    succeeds("fit", *files, *run, *TINY, *SMALL, *more)
    return last(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return fit(
        "coloured_teacher", tmp_path_factory.mktemp("coloured") / "teacher", 4, "--model.network.widths", "[8,12]"
    )


@pytest.fixture(scope="module")
def student(tmp_path_factory, teacher):
    return fit("coloured", tmp_path_factory.mktemp("coloured") / "student", 4, "--model.teacher", teacher)


def test_a_resumed_run_is_the_uninterrupted_one(student, teacher, tmp_path):
    fit("coloured", tmp_path / "run", 2, "--model.teacher", teacher)
    resumed = fit("coloured", tmp_path / "run", 4, "--model.teacher", teacher, "--ckpt_path", "last")
    one, other = (load(path).denoiser.state_dict() for path in (student, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_both_sets_reach_the_network(student):
    model = load(student)
    noise = model.noise(4, 0)
    of = {name: torch.tensor([1, 1, 1, 1]) for name in ("digit", "ground")}
    made = model.sample(noise, Condition(of))
    for name in of:
        other = model.sample(noise, Condition({**of, name: torch.tensor([2, 2, 2, 2])}))
        assert (other - made).abs().amax((1, 2, 3)).min() > 0
    assert torch.equal(model.sample(noise, torch.full((4,), 5)), made)  # 4 digit + ground


def test_the_exported_folder_makes_the_same_samples_by_number_and_by_name(student, tmp_path):
    succeeds("export", student, tmp_path / "folder")
    model, again = load(student), load(tmp_path / "folder")
    noise = model.noise(6, 3)
    assert torch.equal(again.sample(noise, again.labels(6)), model.sample(noise, model.labels(6)))
    named = '{"digit": 7, "ground": [0, 2]}'
    succeeds(
        "sample", "--checkpoint", tmp_path / "folder", "--n", 4, "--labels", named, "--out", tmp_path / "named.npz"
    )
    assert np.load(tmp_path / "named.npz")["labels"].tolist() == [28, 30, 28, 30]


def test_a_pipeline_takes_both_by_name(student):
    from fdistill.io.export.pipeline import OneStepPipeline

    model = load(student)
    pipeline, latents = OneStepPipeline(model), model.noise(2, 0)
    (images,) = pipeline(2, {"digit": 3, "ground": [0, 1]}, latents=latents, output_type="pt", return_dict=False)
    assert torch.equal(images, model.sample(latents, torch.tensor([12, 13])))


@pytest.mark.slow
def test_the_report_compares_combinations(student, teacher, tmp_path):
    succeeds("evaluate", "--checkpoint", student, "--n", 80, "--repeats", 1, "--bootstrap", 0, "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"student", "teacher"} <= report.keys()


def test_a_teacher_of_other_classes_is_refused_by_name(teacher, tmp_path):
    files = ("--config", CONFIGS / "trainer.yaml", "--config", CONFIGS / "benchmarks" / "coloured.yaml")
    stacked = ("--data", "StackedDigits", "--model.teacher", teacher, "--trainer.default_root_dir", tmp_path / "run")
    outcome = fdistill("fit", *files, *stacked, *TINY)
    assert outcome.status != 0
    assert "ground (4 classes)" in outcome.err


def test_an_unknown_name_is_refused(student, tmp_path):
    outcome = fdistill(
        "sample", "--checkpoint", student, "--n", 2, "--labels", '{"digit": 7}', "--out", tmp_path / "x.npz"
    )
    assert outcome.status != 0
    assert "ground" in outcome.err


def test_modes_are_read_from_the_pixels():
    held_out = ColouredDigits().held_out_samples
    right = (ColouredDigits().read_modes(held_out.copied().x) == held_out.labels).double().mean()
    assert right > 0.98
