"""metrics.jsonl: one object a line, and nothing of a turn twice; TensorBoard and CSV beside it; one call for all."""

import csv
import json
import math

import pytest
import torch
import yaml
from cli_runs import CONFIGS, fdistill
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fdistill.training.loggers import (
    CsvFiles,
    JsonlLogger,
    TensorBoardFiles,
    log_configuration,
    log_histogram,
    log_numbers,
    log_picture,
    log_words,
)


class Foreign(Logger):
    """Some logger that nobody here knows."""

    name = version = ""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        self.lines.append(params)


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


@pytest.fixture
def picture(tmp_path):
    """A PNG of two pixels."""
    path = tmp_path / "picture.png"
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (10, 20, 30))
    image.save(path)
    return path


def log_everything(loggers, picture):
    log_numbers(loggers, {"metric/recall": torch.tensor(0.5, dtype=torch.float64)}, 3)
    log_words(loggers, "collapse/reason", "recall 0.1 is below 0.5", 3)
    log_picture(loggers, "samples/grid", picture, 3)
    log_histogram(loggers, "samples/nearest_distance", torch.tensor([[0.0, 1.0], [math.nan, math.inf]]), 3)
    log_configuration(loggers, {"model": {"divergence": "JensenShannon"}})


def test_each_logger_gets_what_it_can_hold(tmp_path, picture):
    jsonl, foreign, table = JsonlLogger(str(tmp_path)), Foreign(), CsvFiles(str(tmp_path))
    events = TensorBoardFiles(str(tmp_path))
    log_everything([jsonl, foreign, table, events], picture)
    assert written(jsonl) == [
        {"step": 3, "metric/recall": 0.5},
        {"step": 3, "collapse/reason": "recall 0.1 is below 0.5"},
    ]
    assert foreign.lines == [(3, {"metric/recall": 0.5})]
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"metric/recall": "0.5", "step": "3"}]
    found = read_events(events)
    assert [(event.step, event.value) for event in found.Scalars("metric/recall")] == [(3, 0.5)]
    assert (found.Images("samples/grid")[0].width, found.Images("samples/grid")[0].height) == (2, 1)
    assert found.Histograms("samples/nearest_distance")[0].histogram_value.num == 2  # the finite ones
    (reason,) = found.Tensors("collapse/reason/text_summary")
    assert reason.tensor_proto.string_val == [b"recall 0.1 is below 0.5"]
    assert b"divergence: JensenShannon" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_only_rank_0_logs(tmp_path, picture, monkeypatch):
    foreign = Foreign()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_everything([foreign, JsonlLogger(str(tmp_path / "run"))], picture)
    assert foreign.lines == []
    assert not (tmp_path / "run").exists()


def test_values_that_are_no_numbers_stay_readable(tmp_path):
    logger = JsonlLogger(str(tmp_path))
    log_numbers([logger], {"a": math.nan, "b": -math.inf}, 0)
    (line,) = written(logger)
    assert math.isnan(line["a"])
    assert line["b"] == -math.inf


def test_words_survive_a_resume_as_what_was_measured_before_the_turn_began(tmp_path):
    logger = JsonlLogger(str(tmp_path))
    for turn in (4, 5, 6):
        log_words([logger], "collapse/reason", f"seen at {turn}", turn)
    logger.continue_from(5)
    assert [line["collapse/reason"] for line in written(logger)] == ["seen at 4", "seen at 5"]


def read_events(logger):
    logger.experiment.flush()
    return EventAccumulator(logger.log_dir).Reload()


def test_tensorboard_shows_the_turns_after_a_checkpoint_once(tmp_path):
    killed, resumed = TensorBoardFiles(str(tmp_path)), TensorBoardFiles(str(tmp_path))
    for turn in range(6):
        killed.log_metrics({"loss/student": turn}, turn)
    killed.experiment.flush()
    resumed.continue_from(4)
    for turn in range(4, 8):
        resumed.log_metrics({"loss/student": 10 * turn}, turn)
    events = [(event.step, event.value) for event in read_events(resumed).Scalars("loss/student")]
    assert events == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (4, 40), (5, 50), (6, 60), (7, 70)]


def test_tensorboard_forgets_the_old_run_where_a_folder_is_used_again(tmp_path):
    old, new = TensorBoardFiles(str(tmp_path)), TensorBoardFiles(str(tmp_path))
    old.log_metrics({"loss/student": 1.0}, 0)
    old.experiment.flush()
    new.continue_from(0)
    new.log_metrics({"loss/student": 2.0}, 0)
    assert [event.value for event in read_events(new).Scalars("loss/student")] == [2.0]


def test_tensorboard_that_is_missing_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tensorboard"):
        TensorBoardFiles(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "logger"),
    [("wandb", "DashboardLogger"), ("tensorboard", "TensorBoardFiles"), ("csv", "CsvFiles")],
)
def test_one_file_adds_a_logger_and_keeps_the_run_log_first(name, logger):
    files = [CONFIGS / file for file in ("trainer.yaml", f"logger/{name}.yaml", "quickstart/teacher.yaml")]
    outcome = fdistill("fit", *(part for file in files for part in ("--config", file)), "--print_config")
    assert outcome.status == 0
    names = [found["class_path"] for found in yaml.safe_load(outcome.out)["trainer"]["logger"]]
    assert names == ["fdistill.training.loggers.JsonlLogger", f"fdistill.training.loggers.{logger}"]
