"""A run that is killed, or asked to end, at any moment and continued is bit for bit the run that was left alone."""

import importlib.util
import os
import random
import signal
import time

import lightning.pytorch as L
import pytest
import torch
from forked import ended, fork, run_forked
from repository import ROOT
from tiny_runs import distillation, fit

from fdistill.core import atomic_files as files
from fdistill.io.checkpoints import read_run_checkpoint
from fdistill.training.callbacks import BestCheckpoint, LastCheckpoint, StudentDistance
from fdistill.training.loggers import JsonlLogger

TURNS = 12
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "tools" / "kill_resume.py"
    spec = importlib.util.spec_from_file_location("kill_resume", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class At(L.Callback):
    """Does something in the middle of a turn."""

    def __init__(self, turn, action):
        self.turn, self.action = turn, action

    def on_fit_start(self, trainer, module):
        def act(*_):
            if trainer.global_step == self.turn:
                self.action()

        module.student.register_forward_hook(act)


def train(folder, turns=TURNS, callbacks=()):
    """One life of a run with a discriminator, ratio bins, an average, measurements and a log."""
    made = [
        LastCheckpoint(every_n_turns=2),
        StudentDistance(every_n_turns=3, num_samples=40),
        BestCheckpoint("metric/pixel_frechet_distance"),
        *callbacks,
    ]
    module = distillation(adversarial_weight=0.1)
    more = {"folder": str(folder), "logger": JsonlLogger(str(folder)), "log_every_n_steps": 1}
    fit(module, turns, callbacks=made, enable_checkpointing=True, resume_from="last", **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was left alone."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


def last(folder):
    return folder / "checkpoints" / "last.ckpt"


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_inside_writing():
    """Die when a checkpoint is written but has no name yet."""
    sync = os.fsync

    def deadly(descriptor):
        if os.fstat(descriptor).st_size > 50_000:  # neither a folder nor the log
            kill_me()
        sync(descriptor)

    files.os.fsync = deadly  # in the child only


def test_killed_in_a_turn_and_inside_writing_and_continued(whole, tool, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    lives = [
        lambda: train(folder, callbacks=[At(0, kill_me)]),  # before there is anything to continue
        lambda: train(folder, callbacks=[At(5, kill_me)]),
        lambda: (kill_inside_writing(), train(folder)),
    ]
    assert [run_forked(life, log) for life in lives] == [-signal.SIGKILL] * 3
    assert len(list(last(folder).parent.glob(".*.tmp"))) == 1
    assert run_forked(lambda: train(folder), log) == 0, log.read_text()
    assert tool.compare_runs(whole, folder) == []
    assert sorted(os.listdir(last(folder).parent)) == ["best.ckpt", "last.ckpt"]


def test_killed_from_outside_at_random_moments_and_continued(whole, tool, tmp_path):
    folder, log, chance = tmp_path / "run", tmp_path / "log", random.Random(0)
    for _ in range(3):
        process = fork(lambda: train(folder), log)
        time.sleep(chance.uniform(0.02, 0.4))
        os.kill(process, signal.SIGKILL)
        assert ended([process])[0] in (0, -signal.SIGKILL)
    assert run_forked(lambda: train(folder), log) == 0, log.read_text()
    assert tool.compare_runs(whole, folder) == []


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_saves_the_whole_turn_and_ends_with_its_status(number, whole, tool, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    ask = At(6, lambda: os.kill(os.getpid(), number))
    assert run_forked(lambda: train(folder, callbacks=[ask]), log) == 128 + number
    assert read_run_checkpoint(last(folder))["global_step"] == 7
    assert run_forked(lambda: train(folder), log) == 0, log.read_text()
    assert tool.compare_runs(whole, folder) == []


def test_a_signal_says_in_one_line_what_it_did(tmp_path, caplog):
    before = signal.getsignal(signal.SIGTERM)
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as stop:
        train(tmp_path, callbacks=[At(3, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    assert stop.value.code == 143
    assert f"SIGTERM: saved turn 4 to {last(tmp_path)} and ended; continue with --ckpt_path last" in caplog.messages
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_last_checkpoint_stands_behind_all_other_callbacks(tmp_path):
    one, other = LastCheckpoint(), BestCheckpoint("metric/x")
    run = fit(distillation(), 1, callbacks=[one, other], folder=str(tmp_path), enable_checkpointing=True)
    assert run.callbacks[-1] is one
    assert len([callback for callback in run.callbacks if callback is one]) == 1


def test_differences_are_found_to_the_bit(tool):
    first = {"a": [torch.zeros(3), {"b": 1.0}], "train_seconds": 3.0, "c": "x", "n": float("nan")}
    second = {"a": [torch.tensor([0.0, -0.0, 0.0]), {"b": 1.0}], "train_seconds": 4.0, "c": "y", "n": float("nan")}
    assert tool.differences(first, second) == ["/a/0", "/c"]
    assert tool.differences({"a": 1}, {"a": 1.0, "b": 2}) == ["/b", "/a"]
    assert tool.differences([torch.zeros(2)], [torch.zeros(2, dtype=torch.float64)]) == ["/0"]
    assert tool.differences([1, 2], [1, 2, 3], "list") == ["list"]
