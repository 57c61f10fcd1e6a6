"""fdistill plan: the configuration of fit, a table, plan.json, and nothing else written or trained."""

import json

import pytest
import torch
import yaml
from cli_runs import CONFIGS, fdistill, one_error_line, succeeds, write_yaml

from fdistill.io.load import load_model
from fdistill.models.networks import SongUNet

STUDENT = ["plan", "--config", CONFIGS / "trainer.yaml", "--config", CONFIGS / "quickstart" / "student.yaml"]


def test_plan_tells_memory_turns_and_time_and_writes_only_its_file(teacher_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = succeeds(*STUDENT, f"--model.teacher={teacher_checkpoint}", "--gpu=A100", "--gpus", 4, "--out", "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    weights = sum(p.numel() for p in load_model(teacher_checkpoint).denoiser.parameters())
    assert plan["parameters"]["student"] == plan["parameters"]["teacher"] == weights
    assert plan["turns"]["fused"]["count"] == 1200
    assert plan["turns"]["fused"]["all_reduce_bytes"] == 4 * (2 * weights + plan["parameters"]["discriminator"])
    assert plan["hardware"]["gpu"] == "A100"
    assert plan["scaling"]["predicted"] == {}  # smaller networks than were measured, for longer
    assert plan["batch_size"] == 128
    for words in ("4 x A100, tf32 at 40%", "optimiser states", "fused", "fits", "an update of the generator costs"):
        assert words in out
    assert "scaling law (data Digits, objective FDistill, steps 1" in out
    assert "predicts nothing here: " in out
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_overrides_of_fit_are_those_of_plan(teacher_checkpoint, tmp_path):
    more = [
        "--data.batch_size=16",
        "--trainer.precision=bf16-mixed",
        "--trainer.max_steps",
        60,
        "--model.turn=alternating",
    ]
    out = succeeds(*STUDENT, f"--model.teacher={teacher_checkpoint}", *more, "--mfu", 0.5)
    assert "1 x H100, bf16 at 50% of 989 TFLOP/s, batch 16 each" in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith(("student", "fake"))] == [
        ["student", "10"],
        ["fake", "50"],
    ]


def test_a_recipe_is_planned_without_a_teacher_s_weights(tmp_path):
    """With a smaller network than that of the cluster's file, which is only read."""
    recipe = [CONFIGS / "recipes" / "cifar10_sid.yaml", CONFIGS / "cluster" / "cifar10_teacher.yaml"]
    smaller = {"num_classes": 10, "model_channels": 32, "channel_mult": [1, 2], "blocks_per_level": 1}
    teacher = yaml.safe_load(recipe[1].read_text())["model"]["init_args"]["teacher"]
    teacher["init_args"]["network"]["init_args"] = smaller
    small, out = write_yaml(tmp_path / "small.yaml", model={"init_args": {"teacher": teacher}}), tmp_path / "plan.json"
    configs = [part for path in (CONFIGS / "trainer.yaml", *recipe, small) for part in ("--config", path)]
    succeeds("plan", *configs, "--trainer.max_steps=600", "--out", out)
    plan = json.loads(out.read_text())
    assert plan["parameters"]["student"] == sum(p.numel() for p in SongUNet(**smaller).parameters())
    assert plan["turns"]["student"]["forwards"] == pytest.approx(7, rel=0.03)  # a small network: its embedding counts


def test_the_strategy_of_the_trainer_is_planned(teacher_checkpoint, tmp_path):
    run = [*STUDENT, f"--model.teacher={teacher_checkpoint}", "--gpus=4"]
    asked = ["--trainer.strategy=fdistill.training.parallel.ShardedStrategy", "--trainer.strategy.cpu_offload=true"]
    whole = succeeds(*run, "--out", tmp_path / "whole.json")
    parts = succeeds(*run, *asked, "--out", tmp_path / "parts.json")
    assert "memory of the CPU" not in whole
    assert "blocks gathered" in parts
    assert "memory of the CPU for each GPU" in parts
    sizes = [json.loads((tmp_path / name).read_text()) for name in ("whole.json", "parts.json")]
    student = "weights of student"
    assert sizes[1]["on_cpu"][student] == pytest.approx(sizes[0]["memory"][student] / 4, rel=0.01)


@pytest.mark.slow
def test_a_reward_tuning_is_planned_with_its_rollouts(teacher_checkpoint, tmp_path):
    tuning = ["plan", "--config", CONFIGS / "trainer.yaml", "--config", CONFIGS / "quickstart" / "reward.yaml"]
    out = succeeds(*tuning, f"--model.teacher={teacher_checkpoint}", "--gpus=2", "--out", tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["turns"]["tuning"]["count"] == 25
    assert plan["turns"]["tuning"]["forwards"] == pytest.approx(10 + 3 * 9, rel=0.02)
    assert set(plan["parameters"]) == {"policy", "ema"}
    assert plan["on_cpu"]["states of a rollout"] == 10 * 240 * 64 * 4
    assert "a turn costs" in out


@pytest.mark.slow
def test_measured_turns_stand_beside_their_bound(teacher_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    small = ["--data.batch_size=4", "--model.turn=alternating", "--model.fake_updates_per_student=1"]
    succeeds(*STUDENT, f"--model.teacher={teacher_checkpoint}", *small, "--measure=10", "--out=measured.json")
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["threads"] == threads
    assert {name: row["turns"] for name, row in measured["turns"].items()} == {"fake": 3, "student": 4}
    assert all(row["bound"] > 0 and 0 < row["fastest"] <= row["median"] for row in measured["turns"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["measured.json"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpu", "H10"], "there is no GPU 'H10' in the table; did you mean H100?"),
        (["--gpus", 0], "gpus is positive: got 0"),
        (["--mfu", 2], "mfu is the share of the peak rate"),
        (["--measure", 3], "measure is 0 for no turns, or at least 10: got 3"),
        (["--trainer.max_steps=-1"], "trainer.max_steps is the number of turns"),
        (["--data.batch_sise=3"], "batch_sise"),
        (["--gpus", "many"], "whole number, got many"),
    ],
)
def test_mistakes_are_one_line(arguments, named, teacher_checkpoint, tmp_path):
    outcome = fdistill(*STUDENT, f"--model.teacher={teacher_checkpoint}", *arguments, "--out", tmp_path / "plan.json")
    assert named in one_error_line(outcome)
    assert not list(tmp_path.iterdir())


def test_a_missing_configuration_is_asked_for():
    assert "give --config FILE" in one_error_line(fdistill("plan"))
