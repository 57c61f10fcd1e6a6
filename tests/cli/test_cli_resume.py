"""fit --ckpt_path last: 6 turns and 6 more are 12 turns, bit for bit; and metrics.jsonl tells the same."""

import json
import shutil

import pytest
import torch
from cli_runs import TURNS, last, student_arguments, succeeds, teacher_arguments, weights_of

ALTERNATING = [
    "--model.turn=alternating",
    "--model.fake_updates_per_student=2",
    "--model.objective.adversarial_weight=0",
]


def log_of(folder):
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def twelve_turns(kind, folder, teacher):
    return teacher_arguments(folder) if kind == "teacher" else student_arguments(folder, teacher, *ALTERNATING)


@pytest.mark.parametrize("kind", ["teacher", "alternating"])
def test_six_turns_and_six_more_are_twelve(kind, teacher_checkpoint, tmp_path):
    whole, parts = (twelve_turns(kind, tmp_path / name, teacher_checkpoint) for name in ("whole", "parts"))
    succeeds(*whole)
    succeeds(*parts, "--trainer.max_steps=6", "--ckpt_path", "last")  # there is none yet: starts afresh
    halfway = weights_of(tmp_path / "parts")
    succeeds(*parts, "--ckpt_path", "last")
    expected, found = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert any(not torch.equal(halfway[name], found[name]) for name in halfway)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")


@pytest.mark.slow
def test_log_after_a_kill_has_every_line_once(teacher_checkpoint, tmp_path):
    metric = '{"class_path": "StudentDistance", "init_args": {"every_n_turns": 3, "num_samples": 20}}'
    flags = [f"--trainer.callbacks+={metric}", "--trainer.limit_val_batches=1", "--trainer.val_check_interval=3"]
    whole, killed = (student_arguments(tmp_path / name, teacher_checkpoint, *flags) for name in ("whole", "killed"))
    succeeds(*whole)
    succeeds(*killed, "--trainer.max_steps=6")
    shutil.copy(last(tmp_path / "killed"), tmp_path / "at_6.ckpt")
    succeeds(*killed, "--trainer.max_steps=10", "--ckpt_path=last")
    shutil.copy(tmp_path / "at_6.ckpt", last(tmp_path / "killed"))
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss/stu')
    succeeds(*killed, "--ckpt_path=last")
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(teacher_run, tmp_path):
    folder = shutil.copytree(teacher_run, tmp_path / "run")
    before, log = weights_of(folder), log_of(folder)
    succeeds(*teacher_arguments(folder, f"--trainer.max_steps={2 * TURNS}", "--ckpt_path=last"))
    after = weights_of(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert log_of(folder) == log
