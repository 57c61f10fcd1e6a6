"""A rank that dies or hangs ends the others by themselves, in one line; a signal to one rank ends all of them."""

import os
import re
import signal
import time

import lightning.pytorch as L
import pytest
import torch
from forked import ended, fork_ranks
from repository import ROOT
from tiny_runs import distillation, fit

from fdistill.cli.main import one_line
from fdistill.core.distributed import LostRankError, on_rank_0
from fdistill.evaluation.metrics import FrechetDistance
from fdistill.training.callbacks import DiversityCallback, LastCheckpoint, SampleGrid
from fdistill.training.parallel import ReplicatedStrategy

SECONDS = 40  # what the tests wait at most; less than the minute that is promised


class At(L.Callback):
    """Does something on one rank before a turn."""

    def __init__(self, rank, turn, action):
        self.rank, self.turn, self.action = rank, turn, action

    def on_train_batch_start(self, trainer, *_):
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.turn):
            self.action()


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


class SlowDistance(FrechetDistance):
    """Takes longer than the ranks wait for each other in a turn."""

    def compute(self):
        time.sleep(2.5)
        return super().compute()


class SlowGrid(SampleGrid):
    """So does this."""

    def _draw(self, *args):
        time.sleep(2.5)
        super()._draw(*args)


class Alone(L.Callback):
    """Rank 0 fails after the third turn, while the other waits."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            on_rank_0(self.fail)

    def fail(self):
        raise self.error


def two_ranks_until(action, folder, timeout_s=50.0, turns=8):
    """Statuses and prints of two ranks, of which the second does something before its fourth turn."""

    def work(rank):
        strategy = ReplicatedStrategy(timeout_s=timeout_s)
        callbacks = [At(1, 3, action), LastCheckpoint(every_n_turns=2)]
        more = {"folder": str(folder), "enable_checkpointing": True, "callbacks": callbacks}
        try:
            fit(distillation(), turns, strategy=strategy, devices=2, **more)
        except LostRankError as error:
            print(one_line(error))
            return 1
        return 0

    statuses = ended(fork_ranks(work, folder), SECONDS)
    return statuses, [(folder / f"rank{rank}.log").read_text() for rank in range(2)]


def test_a_killed_rank_ends_the_other_with_one_line(tmp_path):
    statuses, prints = two_ranks_until(kill_me, tmp_path)
    assert statuses == [1, -signal.SIGKILL], prints
    assert "rank 0 of 2 lost another rank" in prints[0].splitlines()[-1]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_rank_that_hangs_ends_the_other_after_the_timeout(tmp_path):
    statuses, prints = two_ranks_until(lambda: time.sleep(5), tmp_path, timeout_s=2.0)
    assert statuses == [1, 1], prints  # it finds nobody when it wakes up
    assert "rank 0 of 2 lost another rank" in prints[0].splitlines()[-1]


def test_a_signal_to_one_rank_saves_and_ends_all_of_them_after_the_same_turn(tmp_path):
    statuses, prints = two_ranks_until(lambda: os.kill(os.getpid(), signal.SIGTERM), tmp_path)
    assert statuses == [143, 143], prints
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5


def two_ranks_with(callbacks, logs, **more):
    """Statuses and prints of two ranks that train with callbacks."""

    def work(rank):
        try:
            fit(
                distillation(),
                4,
                strategy=ReplicatedStrategy(timeout_s=2.0),
                devices=2,
                callbacks=callbacks,
                **more,
            )
        except Exception as error:
            print(f"{type(error).__name__}: {one_line(error)}")
            return 1
        return 0

    statuses = ended(fork_ranks(work, logs), SECONDS)
    return statuses, [(logs / f"rank{rank}.log").read_text() for rank in range(2)]


def test_rank_0_may_work_alone_for_longer_than_ranks_wait_in_a_turn(tmp_path):
    metrics = {"frechet_distance": SlowDistance()}
    slow = [DiversityCallback(3, num_samples=20, metrics=metrics), SlowGrid(every_n_turns=3, num_samples=4)]
    statuses, prints = two_ranks_with(slow, tmp_path, folder=str(tmp_path / "run"))
    assert statuses == [0, 0], prints
    assert (tmp_path / "run" / "samples" / "0000003.png").is_file()


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), KeyError("odd"), ValueError("odd"), MemoryError("odd")], ids=repr
)
def test_what_goes_wrong_on_rank_0_ends_all_ranks_and_is_named(error, tmp_path):
    statuses, prints = two_ranks_with([Alone(error)], tmp_path)
    assert statuses == [1, 1], prints
    for words in prints:
        assert type(error).__name__ in words.splitlines()[-1]
        assert "odd" in words.splitlines()[-1]


def test_a_checkpoint_that_cannot_be_written_ends_all_ranks(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    more = {"folder": str(tmp_path), "enable_checkpointing": True}
    statuses, prints = two_ranks_with([LastCheckpoint(every_n_turns=3)], tmp_path, **more)
    assert statuses == [1, 1], prints
    assert all("checkpoints" in words.splitlines()[-1] for words in prints)


def test_nobody_works_on_rank_0_unless_the_others_know():
    package = ROOT / "fdistill"
    alone = {
        path.name for path in package.rglob("*.py") if re.search(r"is_global_zero|rank\(\) == 0", path.read_text())
    }
    assert alone == {"distributed.py", "sharded.py"}  # that gather on rank 0, all ranks taking part


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_an_impossible_timeout(timeout_s):
    with pytest.raises(ValueError, match="timeout_s"):
        ReplicatedStrategy(timeout_s=timeout_s)
