"""Checkpoints: nothing in them is executed, what is broken says so in one line, and what fits comes back exactly."""

import json
import os

import pytest
import torch
from cli_runs import fdistill, last, one_error_line, student_arguments, teacher_arguments

from fdistill.core.weight_files import CheckpointError, load_weights, read_json
from fdistill.io.checkpoints import model_from_record, model_record, read_run_checkpoint
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, DiffusersUNet, GaussianMixture, SmallUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import EDM, X0Prediction

NETWORKS = {
    "MLP": lambda: MLP(dim=3, width=8, depth=2, num_classes=2),
    "SmallUNet": lambda: SmallUNet(widths=[8, 16]),
    "DiffusersUNet": lambda: DiffusersUNet(widths=[8, 16], groups=4, num_classes=3),
}


class Mischief:
    """Executes a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


BROKEN = {
    "missing": (lambda path, good: None, "no checkpoint at"),
    "truncated": (lambda path, good: path.write_bytes(good[: len(good) // 2]), "is truncated or no checkpoint"),
    "cut by a byte": (lambda path, good: path.write_bytes(good[:-1]), "is truncated or no checkpoint"),
    "empty": (lambda path, good: path.write_bytes(b""), "is truncated or no checkpoint"),
    "junk": (lambda path, good: path.write_bytes(bytes(range(128, 256)) * 9), "is truncated or no checkpoint"),
    "damaged": (lambda path, good: path.write_bytes(good[:2000] + b"0" * 900 + good[2900:]), "is damaged, the CRC-32"),
    "a list": (lambda path, good: torch.save([1, 2], path), "is no Lightning checkpoint: expected a state_dict inside"),
    "a folder": (lambda path, good: path.mkdir(), "model_index.json: expected a file of an exported model"),
    "mischief": (
        lambda path, good: torch.save({"state_dict": Mischief(f"{path}.ran")}, path),
        "which are never executed",
    ),
}


USES = ("evaluate", "evaluate --teacher", "export", "fit --model.teacher", "fit --ckpt_path")


@pytest.mark.parametrize(
    ("use", "how"),
    [*(("sample", how) for how in BROKEN), *((use, how) for use in USES for how in ("truncated", "mischief"))],
)
def test_broken_checkpoint(how, use, teacher_checkpoint, student_checkpoint, tmp_path):
    path = tmp_path / "broken.ckpt"
    spoil, words = BROKEN[how]
    spoil(path, student_checkpoint.read_bytes())
    arguments = {
        "sample": ["sample", "--checkpoint", path, "--out", tmp_path / "out.png"],
        "evaluate": ["evaluate", "--checkpoint", path, "--out", tmp_path / "out"],
        "evaluate --teacher": [
            "evaluate",
            "--checkpoint",
            student_checkpoint,
            "--teacher",
            path,
            "--out",
            tmp_path / "out",
        ],
        "export": ["export", path, tmp_path / "out"],
        "fit --model.teacher": student_arguments(tmp_path / "out", path),
        "fit --ckpt_path": student_arguments(tmp_path / "out", teacher_checkpoint, "--ckpt_path", path),
    }[use]
    line = one_error_line(fdistill(*arguments))
    assert (words if use != "fit --ckpt_path" or how != "a folder" else "no checkpoint at") in line
    assert str(path) in line
    left = {found.name for found in tmp_path.iterdir()} - {"broken.ckpt", "out-trainer.yaml"}
    assert left == set()  # neither output nor what mischief would have made


def test_a_foreign_checkpoint_is_told_apart(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="record"):
        load_model(tmp_path / "foreign.ckpt")


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_record_and_weights_rebuild_the_model(network, kind):
    denoiser = Denoiser(network(), EDM(0.7))
    facts = {"divergence": "any", "seed": 3, "data": {"class_path": "a", "init_args": {}}}
    made = (
        GenerativeModel.student(denoiser, 4.0, facts)
        if kind == "student"
        else GenerativeModel.teacher(denoiser, 3, 0.1, 9.0, guidance=2.0, facts=facts)
    )
    record = json.loads(json.dumps(model_record(made)))  # a checkpoint and a folder keep plain values
    found = model_from_record(record, denoiser.state_dict(), "somewhere")
    assert (found.kind, found.guidance, found.facts, found.evaluations) == (
        made.kind,
        made.guidance,
        facts,
        made.evaluations,
    )
    noise = made.noise(3, seed=1)
    torch.testing.assert_close(found.sample(noise, made.labels(3)), made.sample(noise, made.labels(3)), rtol=0, atol=0)


def test_an_analytic_teacher_is_rebuilt_from_its_record_alone():
    denoiser = Denoiser(GaussianMixture([[0.0, 1.0]], [0.5]), X0Prediction(VarianceExploding()))
    made = GenerativeModel.teacher(denoiser, 4, 0.1, 9.0)
    found = model_from_record(model_record(made), denoiser.state_dict(), "somewhere")
    assert torch.equal(found.sample(made.noise(5, 0)), made.sample(made.noise(5, 0)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda record: record.pop("sigmas"), "sigmas"),
        (lambda record: record.update(denoiser=3), "init_args"),
        (lambda record: record["denoiser"].update(class_path="os.system"), "imported"),
        (lambda record: record["denoiser"]["init_args"].update(colour=1), "does not take these arguments"),
        (lambda record: record.update(sigmas="wide"), "model"),
    ],
)
def test_spoiled_record(spoil, words):
    denoiser = Denoiser(MLP(width=8, depth=2), EDM(0.5))
    record = model_record(GenerativeModel.student(denoiser, 1.0))
    spoil(record)
    with pytest.raises(CheckpointError, match=words):
        model_from_record(record, denoiser.state_dict(), "somewhere")


def test_weights_of_another_architecture_name_the_first_misfits():
    narrow, wide = (MLP(width=width, depth=2) for width in (8, 16))
    before = {name: value.clone() for name, value in narrow.state_dict().items()}
    with pytest.raises(CheckpointError, match="tensors") as error:
        load_weights(narrow, wide.state_dict(), "here")
    assert str(error.value).count("expected (") == 3
    assert all(torch.equal(before[name], value) for name, value in narrow.state_dict().items())


def test_missing_and_left_over_weights_are_named():
    network = MLP(width=8, depth=2)
    weights = network.state_dict()
    name = next(iter(weights))
    with pytest.raises(CheckpointError, match=f"2 tensors differ.*: {name} missing; other unexpected"):
        load_weights(network, {"other": weights.pop(name), **weights}, "here")


def test_a_teacher_continues_from_its_own_checkpoint_only(teacher_checkpoint, tmp_path):
    arguments = teacher_arguments(
        tmp_path / "run", "--model.network.class_path=SmallUNet", f"--ckpt_path={teacher_checkpoint}"
    )
    assert "another architecture or configuration" in one_error_line(fdistill(*arguments))


def test_loading_draws_nothing_from_the_global_stream_of_others(student_run):
    checkpoint = read_run_checkpoint(last(student_run))
    assert {value.device.type for value in checkpoint["state_dict"].values()} == {"cpu"}


@pytest.mark.parametrize(("text", "words"), [(None, "there is no"), ("{", "readable"), ("[1]", "report")])
def test_json_that_is_none(text, words, tmp_path):
    if text is not None:
        (tmp_path / "file.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_json(tmp_path / "file.json", "a report")
