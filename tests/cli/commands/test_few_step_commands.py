"""Students of several steps on the command line: sample, export and evaluate, from a checkpoint and from a folder."""

import functools
import json

import numpy as np
import pytest
import torch
from cli_runs import fdistill, one_error_line, succeeds

from fdistill.data import GaussianMixtureData
from fdistill.evaluation.sources import open_source
from fdistill.io.checkpoints import model_record
from fdistill.io.export import export_folder
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, DiffusersUNet
from fdistill.sampling.draw import draw
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM

LEVELS = {2: [5.0, 0.8], 4: [80.0, 3.0, 0.9, 0.1]}


def checkpoint(path, network, levels):
    """What a run of such a student would have saved of it."""
    data = GaussianMixtureData(num_modes=2, num_samples=200, num_held_out=50)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GenerativeModel.student(Denoiser(network(), EDM(0.6)), levels, {"seed": 0, "data": data.spec()})
    weights = {f"ema.average.{name}": value for name, value in model.denoiser.state_dict().items()}
    torch.save({"state_dict": weights, "fdistill": model_record(model)}, path)
    return model


@pytest.mark.parametrize("levels", LEVELS.values(), ids=len)
def test_checkpoint_and_folder_give_the_samples_of_the_model(levels, tmp_path):
    model = checkpoint(tmp_path / "last.ckpt", lambda: DiffusersUNet(widths=[8, 16], groups=4), levels)
    out = succeeds("export", tmp_path / "last.ckpt", tmp_path / "folder")
    assert f"a student of {len(levels)} network evaluations per sample, loaded by stock diffusers" in out
    expected = model.sample(model.noise(5, 3)).numpy()
    for source in ("last.ckpt", "folder"):
        out = succeeds(
            "sample", "--checkpoint", tmp_path / source, "--n", 5, "--seed", 3, "--out", tmp_path / "out.npz"
        )
        assert out.startswith(f"wrote 5 samples of {len(levels)} network evaluations each")
        with np.load(tmp_path / "out.npz") as file:
            np.testing.assert_array_equal(file["samples"], expected)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=len)
def test_checkpoint_and_folder_are_the_same_source(levels, tmp_path):
    checkpoint(tmp_path / "last.ckpt", lambda: MLP(dim=2, width=8, depth=2), levels)
    succeeds("export", tmp_path / "last.ckpt", tmp_path / "folder")
    first, second = (open_source(tmp_path / name) for name in ("last.ckpt", "folder"))
    assert first.evaluations == second.evaluations == len(levels)
    assert torch.equal(first.draw(30, 1), second.draw(30, 1))


def test_evaluate_tells_the_evaluations(tmp_path):
    checkpoint(tmp_path / "last.ckpt", lambda: MLP(dim=2, width=8, depth=2), LEVELS[4])
    quick = ["--n", 20, "--repeats", 1, "--bootstrap", 0, "--out", tmp_path / "out"]
    succeeds("evaluate", "--checkpoint", tmp_path / "last.ckpt", *quick)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["student_evaluations"] == 4


def test_the_first_step_is_its_teacher_s_where_there_is_one(tmp_path):
    network = functools.partial(MLP, dim=2, width=8, depth=2)
    student = checkpoint(tmp_path / "last.ckpt", network, LEVELS[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        teacher = GenerativeModel.teacher(Denoiser(network(), EDM(0.6)), 4, 0.002, 80.0)
    export_folder(teacher, tmp_path / "teacher")
    asked = ("sample", "--checkpoint", tmp_path / "last.ckpt", "--n", 3, "--out", tmp_path / "out.npz")
    out = succeeds(*asked, "--first_step", tmp_path / "teacher")
    assert out.startswith("wrote 3 samples of 2 network evaluations each")
    with np.load(tmp_path / "out.npz") as file:
        np.testing.assert_array_equal(file["samples"], draw(student, 3, first_step=teacher).numpy())
    assert "first_step" in one_error_line(fdistill(*asked, "--first_step", "teacher"))
    checkpoint(tmp_path / "one.ckpt", network, [5.0])
    asked = ("sample", "--checkpoint", tmp_path / "one.ckpt", "--n", 3, "--out", tmp_path / "one.npz")
    assert "one step" in one_error_line(fdistill(*asked, "--first_step", tmp_path / "teacher"))
    assert not (tmp_path / "one.npz").exists()
