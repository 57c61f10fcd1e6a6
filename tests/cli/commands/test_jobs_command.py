"""fdistill submit: the configurations are merged and kept, and what cannot run is refused with nothing written."""

import json
from pathlib import Path

import pytest
import yaml
from cli_runs import CONFIGS, fdistill, one_error_line, succeeds, write_yaml

CONFIG = [CONFIGS / "trainer.yaml", CONFIGS / "quickstart" / "teacher.yaml"]
SLURM = ["--on", "slurm", "--trainer.accelerator", "cpu"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_keeps_what_it_was_submitted_with_and_its_folder(tmp_path):
    assert "first: written" in succeeds("submit", *CONFIG, "--name", "first", *SLURM, "--trainer.max_steps=7")
    record = json.loads((tmp_path / "runs" / ".jobs" / "first.json").read_text())
    config = record["command"][record["command"].index("--config") + 1]
    merged = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    assert merged["trainer"]["max_steps"] == 7
    assert merged["model"]["class_path"] == "fdistill.training.TeacherModule"  # known without --import
    assert record["folder"] == str(tmp_path / merged["trainer"]["default_root_dir"]) == str(tmp_path / "runs/first")
    assert "first" in succeeds("jobs")
    assert succeeds("logs", "first") == ""
    again = one_error_line(fdistill("submit", *CONFIG, "--name", "first", *SLURM))
    assert "name" in again


def test_what_cannot_run_is_refused_and_nothing_is_written(tmp_path):
    older = tmp_path / "runs" / "older"
    write_yaml(older / "config.yaml", trainer={})
    broken = write_yaml(tmp_path / "broken.yaml", trainer={"max_stops": 3})
    for wrong, word in (
        (["nowhere", *SLURM], "nowhere"),
        ([*CONFIG, broken, *SLURM], "max_stops"),
        ([*CONFIG, "--name", "older", *SLURM], "already holds"),
        ([*CONFIG, "--name", "a/b", *SLURM], "name"),
        (SLURM, "configurations"),
        ([*CONFIG, "--ckpt_path", "a.ckpt", *SLURM], "a.ckpt"),
    ):
        assert word in one_error_line(fdistill("submit", *wrong))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["older"]
    assert "no runs" in succeeds("jobs")
    assert "fdistill jobs" in one_error_line(fdistill("stop", "older"))
