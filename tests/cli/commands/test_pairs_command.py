"""fdistill pairs: a teacher's samples beside their latents, computed once, never overwritten unasked."""

import pytest
import torch
from cli_runs import fdistill, one_error_line, succeeds

from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.io.export import export_folder
from fdistill.io.load import load_model
from fdistill.models.condition import takes_classes


@pytest.fixture(scope="module")
def made(teacher_checkpoint, tmp_path_factory):
    """A file of 12 pairs, and what the command printed."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.safetensors"
    return path, succeeds("pairs", teacher_checkpoint, path, "--n", 12, "--seed", 3, "--batch_size", 5)


@pytest.fixture
def copied(made, tmp_path):
    """The file, for a test to spoil."""
    path = tmp_path / "pairs.safetensors"
    path.write_bytes(made[0].read_bytes())
    return path


def test_pairs_are_what_the_teacher_makes_of_the_latents(made, teacher_checkpoint):
    path, out = made
    assert out == f"wrote 12 pairs of 35 network evaluations each to {path}\n"
    pairs, model = TeacherPairs.load(path), load_model(teacher_checkpoint)
    assert torch.equal(pairs.latents, model.noise(12, 3))
    assert pairs.condition["labels"].tolist() == [i % 10 for i in range(12)]
    torch.testing.assert_close(pairs.samples, model.sample(pairs.latents, pairs.condition))
    assert (pairs.facts["teacher"], pairs.facts["evaluations"]) == (str(teacher_checkpoint), "35")
    pairs.check_fits((1, 8, 8), takes_classes(10))


def test_the_same_pairs_are_found_and_not_computed_again(made, teacher_checkpoint, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    path, before = made[0], made[0].stat().st_mtime_ns
    monkeypatch.setattr(TeacherPairs, "make", never)
    out = succeeds("pairs", teacher_checkpoint, path, "--n", 12, "--seed", 3, "--batch_size", 7)
    assert out == f"{path} holds these 12 pairs already; nothing was computed\n"
    assert path.stat().st_mtime_ns == before


def test_the_teacher_is_known_again_wherever_it_lies(made, teacher_checkpoint, tmp_path):
    (tmp_path / "moved.ckpt").write_bytes(teacher_checkpoint.read_bytes())
    export_folder(load_model(teacher_checkpoint), tmp_path / "exported")
    for place in ("moved.ckpt", "exported"):
        assert "already" in succeeds("pairs", tmp_path / place, made[0], "--n", 12, "--seed", 3)


def test_an_exported_teacher_makes_the_same_pairs(made, teacher_checkpoint, tmp_path):
    folder = export_folder(load_model(teacher_checkpoint), tmp_path / "exported")
    succeeds("pairs", folder, tmp_path / "out.safetensors", "--n", 12, "--seed", 3, "--batch_size", 5)
    assert torch.equal(TeacherPairs.load(tmp_path / "out.safetensors").samples, TeacherPairs.load(made[0]).samples)


def test_other_pairs_are_refused_by_what_differs_and_replaced_when_told(copied, teacher_checkpoint):
    kept = copied.read_bytes()
    line = one_error_line(fdistill("pairs", teacher_checkpoint, copied, "--n", 4, "--seed", 5))
    assert line == (
        f"{copied} holds other pairs (n 12 instead of 4, seed 3 instead of 5): name another file, or give --overwrite"
    )
    assert copied.read_bytes() == kept
    succeeds("pairs", teacher_checkpoint, copied, "--n", 4, "--seed", 5, "--overwrite")
    assert len(TeacherPairs.load(copied)) == 4


def test_a_teacher_that_learned_further_is_another_one(copied, teacher_checkpoint, tmp_path):
    model = load_model(teacher_checkpoint)
    with torch.no_grad():
        next(model.denoiser.parameters()).mul_(1.001)
    further = export_folder(model, tmp_path / "further")
    line = one_error_line(fdistill("pairs", further, copied, "--n", 12, "--seed", 3))
    assert line.startswith(f"{copied} holds other pairs (model ")


def test_foreign_files_are_never_replaced_unasked(copied, teacher_checkpoint):
    copied.write_text("keep me")
    line = one_error_line(fdistill("pairs", teacher_checkpoint, copied, "--n", 2))
    assert line == f"{copied} is there and holds no pairs of fdistill: name another file, or give --overwrite"
    assert copied.read_text() == "keep me"


def test_a_folder_is_no_place_for_pairs(teacher_checkpoint, tmp_path):
    path = tmp_path / "folder.safetensors"
    path.mkdir()
    line = one_error_line(fdistill("pairs", teacher_checkpoint, path, "--n", 2, "--overwrite"))
    assert line == f"pairs are written to a file: {path} is a folder; name a file in it"


def test_an_interrupted_command_leaves_the_old_file_and_no_other(copied, teacher_checkpoint, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    kept = copied.read_bytes()
    monkeypatch.setattr("os.fsync", interrupted)  # while the new file is being written
    assert fdistill("pairs", teacher_checkpoint, copied, "--n", 2, "--overwrite").status == 130
    assert copied.read_bytes() == kept
    assert list(copied.parent.iterdir()) == [copied]


MISTAKES = {
    "no pairs": (["out.safetensors", "--n=0"], "n is a number of pairs: expected >= 1, got 0"),
    "empty batches": (["out.safetensors", "--batch_size=0"], "batch_size is a number of latents at once"),
    "another ending": (["out.npz"], "pairs are written as .safetensors: got 'out.npz'"),
    "unknown device": (["out.safetensors", "--device=gpu"], "device is cpu, cuda, cuda:1, mps ...: got 'gpu'"),
    "unknown option": (["out.safetensors", "--sede=1"], "did you mean seed?"),
    "text for n": (["out.safetensors", "--n=many"], "whole number, got many"),
    "no file": ([], "required: out"),
    "too many files": (["out.safetensors", "more"], "more"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, teacher_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, words = MISTAKES[mistake]
    assert words in one_error_line(fdistill("pairs", teacher_checkpoint, *arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_student_makes_no_pairs(student_checkpoint, tmp_path):
    line = one_error_line(fdistill("pairs", student_checkpoint, tmp_path / "out.safetensors"))
    assert line == f"pairs are made by a teacher's ODE: {student_checkpoint} is a student"


def test_the_progress_bar_is_gone_at_the_end(teacher_checkpoint, tmp_path):
    outcome = fdistill("pairs", teacher_checkpoint, tmp_path / "out.safetensors", "--n", 1)
    assert outcome.err.startswith("\rpairs:   0%")
    assert outcome.err.split("\r")[-2].strip() == outcome.err.split("\r")[-1] == ""
    assert outcome.out == f"wrote 1 pair of 35 network evaluations each to {tmp_path / 'out.safetensors'}\n"
