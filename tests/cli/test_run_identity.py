"""fit in a folder that holds a run: it continues as that run or not at all, and config.yaml tells what it used."""

import shutil

import pytest
import torch
import yaml
from cli_runs import TURNS, fdistill, last, one_error_line, student_arguments, succeeds, teacher_arguments

LONGER = ("--ckpt_path=last", f"--trainer.max_steps={2 * TURNS + 1}")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def groups(folder, optimizer=0):
    return torch.load(last(folder), weights_only=True)["optimizer_states"][optimizer]["param_groups"]


def told(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]


@pytest.fixture
def run(teacher_run, tmp_path):
    """A finished run of a teacher that was moved, and that a test may continue."""
    return shutil.copytree(teacher_run, tmp_path / "run")


@pytest.mark.parametrize(
    "flag",
    [
        "--model.ema_decay=0.9",
        "--model.optimizer=torch.optim.Adam",
        "--model.optimizer.amsgrad=true",
        "--data.batch_size=8",
        "--data=Chequerboard",
        "--seed_everything=3",
    ],
)
def test_another_run_does_not_continue_in_its_folder(flag, run):
    before = contents(run)
    line = one_error_line(fdistill(*teacher_arguments(run, *LONGER, flag)))
    assert flag.strip("-").split("=")[0].rpartition("optimizer.")[2] in line
    assert contents(run) == before


@pytest.mark.parametrize(
    "flag", ["--model.sigma_init=4", "--model.objective.divergence=ReverseKL", "--model.turn=alternating"]
)
def test_another_distillation_does_not_continue_either(flag, student_run, teacher_checkpoint, tmp_path):
    folder = shutil.copytree(student_run, tmp_path / "run")
    before = contents(folder)
    line = one_error_line(fdistill(*student_arguments(folder, teacher_checkpoint, *LONGER, flag)))
    assert flag.strip("-").split("=")[0] in line
    assert contents(folder) == before


def test_a_new_learning_rate_and_betas_take_effect_and_are_told(run):
    flags = ("--model.optimizer.lr=5e-4", "--model.optimizer.betas=[0.5,0.95]", "--trainer.precision=bf16-mixed")
    succeeds(*teacher_arguments(run, *LONGER, *flags))
    used, written = groups(run)[0], told(run)["optimizer"]["init_args"]
    assert (used["lr"], tuple(used["betas"])) == (5e-4, (0.5, 0.95)) == (written["lr"], tuple(written["betas"]))


def test_a_new_learning_rate_takes_effect_below_a_schedule_and_without_it(tmp_path):
    halved = "--trainer.callbacks+={class_path: LearningRate, init_args: {factor: {class_path: Steps, init_args: "
    halved += "{values: [1.0, 0.5], boundaries: [1]}}}}"
    run = tmp_path / "run"
    succeeds(*teacher_arguments(run, "--trainer.max_steps=2", halved))
    succeeds(*teacher_arguments(run, "--trainer.max_steps=3", "--ckpt_path=last", "--model.optimizer.lr=4e-4", halved))
    assert groups(run)[0]["lr"] == pytest.approx(2e-4)
    succeeds(*teacher_arguments(run, "--trainer.max_steps=4", "--ckpt_path=last", "--model.optimizer.lr=4e-4"))
    assert groups(run)[0]["lr"] == pytest.approx(4e-4)


def test_a_teacher_that_was_trained_anew_is_another_one(student_run, teacher_checkpoint, tmp_path):
    folder, moved = shutil.copytree(student_run, tmp_path / "run"), tmp_path / "moved.ckpt"
    checkpoint = torch.load(teacher_checkpoint, weights_only=True)
    torch.save(checkpoint, moved)
    succeeds(*student_arguments(folder, moved, *LONGER))
    name = next(name for name in checkpoint["state_dict"] if name.startswith("ema.average."))
    checkpoint["state_dict"][name] += 1e-3
    torch.save(checkpoint, moved)
    more = ("--ckpt_path=last", f"--trainer.max_steps={2 * TURNS + 2}")
    assert "teacher" in one_error_line(fdistill(*student_arguments(folder, moved, *more)))


def test_another_folder_takes_a_branch_with_other_settings(run, tmp_path):
    flags = (f"--ckpt_path={last(run)}", f"--trainer.max_steps={2 * TURNS + 1}", "--model.ema_decay=0.9")
    before, branch = contents(run), tmp_path / "branch"
    succeeds(*teacher_arguments(branch, *flags))
    assert told(branch)["ema_decay"] == 0.9
    assert contents(run) == before
    assert "already holds" in one_error_line(fdistill(*teacher_arguments(branch, *flags)))


def test_a_new_run_leaves_an_older_one_alone(run):
    before = contents(run)
    assert "--ckpt_path last" in one_error_line(fdistill(*teacher_arguments(run, "--trainer.max_steps=1")))
    assert contents(run) == before


def test_a_run_that_died_before_its_first_checkpoint_starts_again_only_when_asked(tmp_path):
    once = teacher_arguments(tmp_path / "run", "--trainer.max_steps=2")
    one_error_line(fdistill(*once, "--model.optimizer.lr=1e30"))
    assert "without a checkpoint" in one_error_line(fdistill(*once))
    succeeds(*once, "--ckpt_path=last")
    assert last(tmp_path / "run").is_file()


def test_a_run_that_is_over_ends_at_once_and_says_why(run, caplog):
    before = contents(run)
    succeeds(*teacher_arguments(run, "--ckpt_path=last", f"--trainer.max_steps={TURNS}"))
    assert any("max_steps" in message and str(2 * TURNS) in message for message in caplog.messages)
    assert contents(run) == before
