"""Weights & Biases, read from the files that offline runs wrote: names, axes, pictures, settings, continuation."""

import json
import math
import time

import pytest
import torch
from cli_runs import CONFIGS, fdistill, one_error_line, succeeds
from wandb_records import read_folder

from fdistill.evaluation.report.panels import GROUPS, all_groups
from fdistill.training.loggers import DashboardLogger, log_histogram, log_words
from fdistill.training.loggers.dashboard import SUMMARIES

pytestmark = pytest.mark.system  # seconds, too many for make check

TURN = "trainer/global_step"


@pytest.fixture(autouse=True, scope="module")
def logged_out(tmp_path_factory):
    """Nobody is logged in, nobody may be asked, and WANDB_MODE says nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_RUN_ID"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # no .netrc
        patch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
        yield


def arguments(folder, *more):
    """A student of an exact teacher in 2-D, three turns a picture, on the dashboard too."""
    files = [CONFIGS / name for name in ("trainer.yaml", "logger/wandb.yaml", "quickstart/mixture.yaml")]
    grid = {"class_path": "SampleGrid", "init_args": {"every_n_turns": 3, "num_samples": 8}}
    last = {"class_path": "LastCheckpoint", "init_args": {"every_n_turns": 3}}
    return [
        "fit",
        *(part for file in files for part in ("--config", file)),
        f"--trainer.default_root_dir={folder}",
        f"--trainer.callbacks={json.dumps([grid, last])}",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--model.fake_score_warmup=0",
        "--data.batch_size=16",
        *more,
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run folder after three turns, and three more from the checkpoint."""
    folder = tmp_path_factory.mktemp("dashboard") / "run"
    succeeds(*arguments(folder, "--trainer.max_steps=3"))
    time.sleep(1)  # wandb names its folders by the second and the id
    succeeds(*arguments(folder, "--trainer.max_steps=6", "--ckpt_path=last"))
    return folder


def test_the_dashboard_holds_every_number_of_the_run_log_at_its_turn(run):
    expected, found = {}, {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        step = line.pop("step")
        expected |= {(name, step): value for name, value in line.items()}
    for part in read_folder(run):
        for row in part.history:
            found |= {(name, row[TURN]): value for name, value in row.items()}
    assert {turn for name, turn in expected if name == "loss/student"} == set(range(6))
    assert {key: found.get(key) for key in expected} == expected


def test_a_run_that_continues_continues_on_the_dashboard(run):
    first, second = read_folder(run)
    assert first.id == second.id == (run / "wandb_id.txt").read_text().strip()
    assert first.project == "fdistill"
    assert list(first.of("loss/student")) == [0, 1, 2]
    assert list(second.of("loss/student")) == [3, 4, 5]
    assert (first.exit_code, second.exit_code) == (0, 0)


def test_pictures_of_samples_are_the_ones_in_the_run_folder(run):
    pictures = {}
    for part in read_folder(run):
        for turn, picture in part.of("samples/grid").items():
            assert picture["_type"] == "image-file"
            pictures[f"{turn:07d}.png"] = (part.folder / "files" / picture["path"]).read_bytes()
    assert pictures == {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
    assert list(pictures) == ["0000003.png", "0000006.png"]


def test_the_dashboard_knows_the_settings(run):
    for part in read_folder(run):
        model = part.config["model"]
        assert model["class_path"] == "fdistill.training.DistillationModule"
        objective = model["init_args"]["objective"]["init_args"]
        assert objective["divergence"]["class_path"] == "fdistill.theory.divergences.ForwardKL"
        assert model["init_args"]["teacher"]["init_args"]["network"]["init_args"]["weights"] == [0.4, 0.3, 0.2, 0.1]
        assert part.config["trainer"]["default_root_dir"] == str(run)


def test_everything_is_drawn_over_the_turn_and_summarised_by_what_counts(run):
    for part in read_folder(run):
        assert part.axes["*"] == (TURN, set())
        assert part.axes["metric/frechet_distance"] == (TURN, {"min", "last"})
        assert part.axes["metric/recall"] == (TURN, {"max", "last"})
        assert part.axes["collapse/alarm"] == (TURN, {"max", "last"})
        assert part.summary["loss/student"] == list(part.of("loss/student").values())[-1]
        speeds = list(part.of("perf/step_ms").values())
        assert part.summary["perf/step_ms"]["mean"] == pytest.approx(sum(speeds) / len(speeds))


def test_everything_a_distillation_logs_has_its_panel(run):
    names = {name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)} - {"step"}
    assert "ratio/ess" in names
    assert all_groups(names)[-1].panels == ()


def test_what_is_summarised_is_what_the_panels_show():
    names = [name.replace("*", "recall") for names in SUMMARIES.values() for name in names]
    shown = [name for name in names if any(panel.holds(name) for group in GROUPS for panel in group.panels)]
    assert shown == names


def test_a_new_run_in_an_old_folder_is_a_new_run_on_the_dashboard(run, tmp_path):
    (tmp_path / "wandb_id.txt").write_text("oldoldol\n")
    succeeds(*arguments(tmp_path, "--trainer.max_steps=1"))
    (part,) = read_folder(tmp_path)
    assert part.id != "oldoldol"
    assert (tmp_path / "wandb_id.txt").read_text() == f"{part.id}\n"


def test_a_run_that_is_refused_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    assert "precision" in one_error_line(fdistill(*arguments(folder, "--trainer.precision=16-true")))
    assert not folder.exists()


def test_the_given_id_wins_over_the_stored_one(tmp_path):
    (tmp_path / "wandb_id.txt").write_text("oldoldol\n")
    logger = DashboardLogger(id="chosen", save_dir=str(tmp_path / "elsewhere"))
    logger.keep_id_in(str(tmp_path))
    logger.log_metrics({"loss/student": 1.0}, step=0)  # goes nowhere: it has not begun
    logger.continue_from(3)
    log_words([logger], "collapse/reason", "all of one class", 3)
    log_histogram([logger], "samples/nearest_distance", torch.tensor([0.0, 1.0, 1.0, math.nan]), 3)
    logger.finalize("failed")
    (part,) = read_folder(tmp_path / "elsewhere")
    assert part.id == "chosen"
    assert (tmp_path / "wandb_id.txt").read_text() == "chosen\n"
    assert part.of("loss/student") == {}
    assert part.of("collapse/reason") == {3: "all of one class"}
    histogram = part.of("samples/nearest_distance")[3]
    assert histogram["_type"] == "histogram"
    assert sum(histogram["values"]) == 3
    assert part.exit_code == 1


def test_a_logger_of_ones_own_begins_at_once_and_the_next_fit_has_its_own_run(tmp_path):
    for value in (1.0, 2.0):
        logger = DashboardLogger(save_dir=str(tmp_path))
        logger.log_metrics({"loss/student": value}, step=7)
        logger.finalize("success")
    parts = read_folder(tmp_path)
    assert sorted(part.of("loss/student")[7] for part in parts) == [1.0, 2.0]
    assert len({part.id for part in parts}) == 2


def test_online_without_a_login_is_an_error_and_no_question(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ValueError, match="WANDB_MODE"):
        DashboardLogger()


def test_wandb_mode_disabled_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = DashboardLogger(save_dir=str(tmp_path))
    logger.log_metrics({"loss/student": 1.0}, step=0)
    logger.finalize("success")
    assert list(tmp_path.rglob("*.wandb")) == []
