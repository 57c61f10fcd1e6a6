"""A rank that dies or hangs ends the others by themselves, in one line; a signal to one rank ends all of them."""

import os
import signal
import time

import lightning.pytorch as L
import pytest
import torch
from forked import ended, fork_ranks
from tiny_runs import distillation, fit

from fdistill.callbacks import LastCheckpoint
from fdistill.cli import one_line
from fdistill.distributed import LostRankError
from fdistill.strategies import ReplicatedStrategy

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
    statuses, prints = two_ranks_until(lambda: time.sleep(8), tmp_path, timeout_s=2.0)
    assert statuses == [1, 1], prints  # it finds nobody when it wakes up
    assert "rank 0 of 2 lost another rank" in prints[0].splitlines()[-1]


def test_a_signal_to_one_rank_saves_and_ends_all_of_them_after_the_same_turn(tmp_path):
    statuses, prints = two_ranks_until(lambda: os.kill(os.getpid(), signal.SIGTERM), tmp_path)
    assert statuses == [143, 143], prints
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_an_impossible_timeout(timeout_s):
    with pytest.raises(ValueError, match="timeout_s is how long a rank waits for another and positive"):
        ReplicatedStrategy(timeout_s=timeout_s)
