"""A checkpoint is on the disk whole or not at all, and is read as it was written or refused."""

import os
import signal

import lightning.pytorch as L
import pytest
import torch
from forked import limit_file_size, run_forked
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from tiny_runs import distillation, fit

from fdistill.cli.main import one_line
from fdistill.core.weight_files import CheckpointError
from fdistill.io.checkpoints import read_run_checkpoint
from fdistill.io.load import load_model
from fdistill.training.callbacks import LastCheckpoint
from fdistill.training.checkpoint_io import SafeCheckpointIO

HELD = {"state_dict": {"w": torch.arange(6.0), "b": torch.tensor([True, False])}, "n": [1, 2.5, "x"], "d": {"e": None}}


@pytest.fixture
def path(tmp_path):
    """A good checkpoint."""
    SafeCheckpointIO().save_checkpoint(HELD, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def same(first, second):
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    return type(first) is type(second) and first == second


def refused_or_harmless(path, good, places):
    """How many single-bit flips at these bits were refused; the others must change nothing that is read."""
    refused = 0
    for place in places:
        flipped = bytearray(good)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read_run_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:
            assert same(found, HELD), f"bit {place % 8} of byte {place // 8} went unnoticed"
    return refused


def test_what_is_written_is_read(path):
    assert same(read_run_checkpoint(path), HELD)
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(path):
    good = path.read_bytes()
    assert refused_or_harmless(path, good, range(3, 8 * len(good), 61)) > 100


@pytest.mark.slow
def test_every_flipped_bit_is_refused_or_changes_nothing(path):
    good = path.read_bytes()
    assert refused_or_harmless(path, good, range(8 * len(good))) > 4 * len(good)


def test_torch_alone_does_not_notice_a_flipped_bit_of_a_tensor(path):
    good, value = path.read_bytes(), torch.arange(6.0).numpy().tobytes()
    path.write_bytes(good.replace(value, value[:-1] + bytes([value[-1] ^ 1])))
    assert not torch.equal(torch.load(path, weights_only=True)["state_dict"]["w"], HELD["state_dict"]["w"])
    with pytest.raises(CheckpointError, match="CRC"):
        read_run_checkpoint(path)


@pytest.mark.parametrize("length", [0, 1, 100, 1000, -22, -1])
def test_a_truncated_checkpoint_is_refused(length, path):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="checkpoint"):
        read_run_checkpoint(path)


def test_the_refusal_names_the_newest_good_one_beside_it(path):
    older, newer, broken = (path.with_name(name) for name in ("older.ckpt", "newer.ckpt", "broken.ckpt"))
    for other, age in ((older, 30), (newer, 20), (broken, 10)):
        other.write_bytes(path.read_bytes())
        os.utime(other, (1e9 - age, 1e9 - age))
    for spoiled in (path, broken):
        spoiled.write_bytes(spoiled.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"take an earlier one, {newer}$"):
        read_run_checkpoint(path)


@pytest.mark.parametrize("read", [load_model, lambda path: fit(distillation(), 1, resume_from=path)])
def test_a_model_and_a_trainer_of_python_read_the_same_way(read, tmp_path):
    path = tmp_path / "last.ckpt"
    module = distillation()
    fit(module, 1).save_checkpoint(path)
    good, value = path.read_bytes(), next(module.student.parameters()).detach().numpy().tobytes()
    path.write_bytes(good.replace(value, value[:-1] + bytes([value[-1] ^ 1])))
    with pytest.raises(CheckpointError, match="CRC"):
        read(path)


def test_a_way_of_writing_that_the_user_chose_stays(tmp_path):
    class Mine(TorchCheckpointIO):
        """Another one."""

    assert type(fit(distillation(), 1, plugins=[Mine()]).strategy.checkpoint_io) is Mine
    assert type(fit(distillation(), 1).strategy.checkpoint_io) is SafeCheckpointIO


def read_only(*_):
    raise PermissionError(13, "Permission denied")


FAILURES = {
    "disk full": (lambda patch: limit_file_size(600), "File too large"),
    "disk full at the end": (lambda patch: patch.setattr(os, "fsync", no_space), "No space left on device"),
    "read-only folder": (lambda patch: patch.setattr("pathlib.Path.open", read_only), "Permission denied"),
}


def no_space(_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("how", FAILURES)
def test_a_failed_write_keeps_the_last_good_one_and_says_so(how, path, monkeypatch):
    fail, reason = FAILURES[how]

    def write():
        fail(monkeypatch)
        try:
            SafeCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(5000)}}, path)
        except CheckpointError as error:
            print(one_line(error))
            return 1
        return 0

    before, log = path.read_bytes(), path.with_name("log")
    assert run_forked(write, log) == 1
    line = log.read_text()
    assert line.count("\n") == 1
    assert f"cannot write {path}: {reason}" in line
    assert "the one before it is as it was" in line
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["last.ckpt", "log"]


def test_a_full_disk_ends_the_run_and_the_last_checkpoint_continues_it(tmp_path):
    class FullAt(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 3:
                limit_file_size(1000)

    def train():
        callbacks = [FullAt(), LastCheckpoint(every_n_turns=2)]
        try:
            fit(distillation(), 6, folder=str(tmp_path), callbacks=callbacks, enable_checkpointing=True)
        except CheckpointError as error:
            print(one_line(error))
            return 1

    assert run_forked(train, tmp_path / "log") == 1
    assert "cannot write" in (tmp_path / "log").read_text()
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert read_run_checkpoint(last)["global_step"] == 2
    assert os.listdir(last.parent) == ["last.ckpt"]


@pytest.mark.parametrize("function", ["fsync", "rename"])
def test_a_kill_inside_writing_leaves_the_old_one_and_the_next_start_clears_up(function, tmp_path, monkeypatch):
    run = {"folder": str(tmp_path), "enable_checkpointing": True}
    fit(distillation(), 2, callbacks=[LastCheckpoint(every_n_turns=2)], **run)
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def write():
        monkeypatch.setattr(os, "fsync" if function == "fsync" else "replace", lambda *_: os.kill(os.getpid(), 9))
        monkeypatch.setattr("pathlib.Path.replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        SafeCheckpointIO().save_checkpoint(HELD, last)

    assert run_forked(write, tmp_path / "log") == -signal.SIGKILL
    assert last.read_bytes() == before
    assert len(os.listdir(last.parent)) == 2
    fit(distillation(), 3, callbacks=[LastCheckpoint(every_n_turns=2)], resume_from="last", **run)
    assert os.listdir(last.parent) == ["last.ckpt"]
    assert read_run_checkpoint(last)["global_step"] == 3
