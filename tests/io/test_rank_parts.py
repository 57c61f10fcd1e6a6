"""Each rank writes and reads its own part of a checkpoint; a part that is not the one written is refused."""

import os

import pytest
import torch
import torch.distributed as dist
from forked import ended, fork_ranks

from fdistill.core.weight_files import CheckpointError
from fdistill.io.rank_parts import OWN, write_part
from fdistill.training.checkpoint_io import SafeCheckpointIO

SAVED = {"state_dict": {}, "pytorch-lightning_version": "2"}


def saved_by(ranks, path, value=0.0, folder_of=None):
    """Statuses of processes that save a checkpoint together, rank r with [value + r] of its own."""

    def work(rank):
        dist.init_process_group("gloo")
        checkpoint = SAVED | {OWN: {"a/b": torch.full((2,), value + rank)}}
        try:
            write_part(checkpoint, (folder_of or {}).get(rank, path.parent) / path.name)
        except CheckpointError as error:
            print(error)
            return 1
        assert OWN not in checkpoint
        if rank == 0:
            SafeCheckpointIO().save_checkpoint(checkpoint, path)
        dist.barrier()

    return ended(fork_ranks(work, path.parent, ranks))


def held(path, rank):
    return SafeCheckpointIO().load_checkpoint(path)[OWN].of(rank, "a/")["b"].tolist()


@pytest.fixture
def path(tmp_path):
    """A checkpoint of two ranks."""
    assert saved_by(2, tmp_path / "last.ckpt") == [0, 0]
    return tmp_path / "last.ckpt"


def parts(path):
    return sorted(path.parent.glob("last.*.safetensors"))


def test_each_rank_finds_its_own_and_the_parts_before_are_gone(path):
    first = parts(path)
    assert [held(path, rank) for rank in range(2)] == [[0.0, 0.0], [1.0, 1.0]]
    assert saved_by(2, path, value=5.0) == [0, 0]
    assert [held(path, rank) for rank in range(2)] == [[5.0, 5.0], [6.0, 6.0]]
    assert len(parts(path)) == 2
    assert not set(first) & set(parts(path))
    SafeCheckpointIO().save_checkpoint(SAVED | {OWN: {"a/b": torch.ones(1)}}, path)  # one process goes on
    assert (held(path, 0), parts(path)) == ([1.0], [])


def test_a_link_to_a_checkpoint_finds_the_parts(path, tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "there" / "other.ckpt"
    link.symlink_to(path)
    assert held(link, 1) == [1.0, 1.0]


def test_a_part_that_is_missing_or_altered_is_refused(path):
    file = parts(path)[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        held(path, 1)
    file.unlink()
    with pytest.raises(CheckpointError, match=file.name):
        held(path, 1)
    assert held(path, 0) == [0.0, 0.0]


def test_a_rank_that_cannot_write_stops_all_and_leaves_the_checkpoint_before(path, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    assert saved_by(2, path, value=7.0, folder_of={1: blocked}) == [1, 1]
    assert all("rank 1" in (tmp_path / f"rank{rank}.log").read_text() for rank in range(2))
    assert [held(path, rank) for rank in range(2)] == [[0.0, 0.0], [1.0, 1.0]]


def test_removing_a_checkpoint_removes_its_parts(path):
    SafeCheckpointIO().remove_checkpoint(path)
    assert [name for name in os.listdir(path.parent) if not name.endswith(".log")] == []
