"""Adapters on one base from the command line: fit, continue, average, export; other roles are refused."""

import torch
from cli_runs import fdistill, last, student_arguments, succeeds

from fdistill.io.load import load_model

SHARED = ["--model.roles=SharedBase", "--model.roles.rank=2", "--model.roles.targets=all"]
AVERAGES = '--trainer.callbacks+={"class_path": "PowerAverages", "init_args": {"snapshots": 4}}'


def test_a_run_of_adapters_is_continued_averaged_and_exported(teacher_checkpoint, tmp_path):
    run = tmp_path / "run"
    arguments = student_arguments(run, teacher_checkpoint, *SHARED, AVERAGES)
    succeeds(*arguments, "--trainer.max_steps=6")
    succeeds(*arguments, "--ckpt_path=last")
    refused = fdistill(*arguments, "--ckpt_path=last", "--trainer.max_steps=18", "--model.roles.rank=3")
    assert refused.status != 0
    assert "roles" in refused.err.strip().splitlines()[-1]
    succeeds("export", last(run), tmp_path / "student")
    student, teacher = load_model(tmp_path / "student"), load_model(teacher_checkpoint)
    assert student.denoiser.state_dict().keys() == teacher.denoiser.state_dict().keys()
    succeeds("average", run, "--length=0.1", "--out", tmp_path / "average")
    averaged = load_model(tmp_path / "average").denoiser.state_dict()
    changed = {name for name, value in averaged.items() if not torch.equal(value, teacher.denoiser.state_dict()[name])}
    assert changed
    assert all(name.endswith(".weight") for name in changed)
    small, whole = (
        torch.load(last(of), weights_only=True)["state_dict"] for of in (run, teacher_checkpoint.parents[1])
    )
    assert all(".lora_" in name for name in small if name.startswith("ema."))
    assert any(name.startswith("ema.") for name in whole)
