"""metrics.jsonl: one object a line, and nothing of a turn twice."""

import json

import pytest
import yaml
from cli_runs import CONFIGS, fdistill

from fdistill.loggers import DashboardLogger, JsonlLogger


def written(logger):
    return [json.loads(line) for line in logger.path.read_text().splitlines()]


def test_every_call_is_a_line(tmp_path):
    logger = JsonlLogger(str(tmp_path / "new" / "run"))
    logger.log_metrics({"loss/student": 0.5, "epoch": 0}, step=3)
    logger.log_metrics({"metric/recall": 1}, step=4)
    assert written(logger) == [{"step": 3, "loss/student": 0.5}, {"step": 4, "metric/recall": 1.0}]


def test_continuing_keeps_what_was_measured_before_the_turn_began(tmp_path):
    logger = JsonlLogger(str(tmp_path))
    for step, name in [(4, "loss/student"), (5, "metric/recall"), (5, "loss/student"), (6, "metric/recall")]:
        logger.log_metrics({name: 1.0}, step)
    logger.continue_from(5)
    assert written(logger) == [{"step": 4, "loss/student": 1.0}, {"step": 5, "metric/recall": 1.0}]


def test_continuing_from_the_start_forgets_all_losses(tmp_path):
    logger = JsonlLogger(str(tmp_path))
    logger.log_metrics({"loss/student": 1.0}, 0)
    logger.continue_from(0)
    assert written(logger) == []


def test_torn_and_foreign_lines_are_dropped(tmp_path):
    logger = JsonlLogger(str(tmp_path))
    logger.path.write_bytes(b'{"step": 0, "loss/a": 1}\n[1]\n{"no": 1}\n\xff\xfe\n{"step": 1, "los')
    logger.continue_from(9)
    assert written(logger) == [{"step": 0, "loss/a": 1}]


def test_continuing_without_a_file_makes_none(tmp_path):
    JsonlLogger(str(tmp_path)).continue_from(3)
    assert list(tmp_path.iterdir()) == []


def test_dashboard_without_a_login_stays_offline_and_asks_nothing(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    logger = DashboardLogger(save_dir=str(tmp_path))
    logger.log_metrics({"loss/student": 0.5}, step=3)
    logger.experiment.finish()
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"loss/student" in written.read_bytes()


def test_dashboard_configuration_keeps_the_run_log():
    files = [CONFIGS / name for name in ("trainer.yaml", "logger/wandb.yaml", "quickstart/teacher.yaml")]
    outcome = fdistill("fit", *(part for file in files for part in ("--config", file)), "--print_config")
    assert outcome.status == 0
    names = [logger["class_path"] for logger in yaml.safe_load(outcome.out)["trainer"]["logger"]]
    assert names == ["fdistill.loggers.JsonlLogger", "fdistill.loggers.DashboardLogger"]
