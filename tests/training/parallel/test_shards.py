"""A checkpoint of a sharded run lies in parts beside it, goes on bit for bit, and is read by one process too."""

import pytest
import torch
from forked import ended, fork_ranks
from tiny_runs import distillation, fit, mlp, ring

from fdistill.cli.commands import UsageError
from fdistill.cli.commands.consolidate import consolidate
from fdistill.core.distributed import whole
from fdistill.core.weight_files import CheckpointError
from fdistill.io import shards
from fdistill.io.checkpoints import read_run_checkpoint
from fdistill.io.load import load_model
from fdistill.training.checkpoint_io import SafeCheckpointIO


def module(**changes):
    return distillation(student=mlp(seed=1), **{"adversarial_weight": 0.1} | changes)


def weights_of(built):
    return {name: whole(value).clone() for name, value in torch.nn.Module.state_dict(built).items()}


def in_two_ranks(work, folder, seconds=120):
    assert ended(fork_ranks(work, folder), seconds) == [0, 0], (folder / "rank0.log").read_text()


def test_a_large_run_is_written_in_many_files(monkeypatch):
    monkeypatch.setattr(shards, "FILE_BYTES", 100)
    given = {"a": torch.zeros(10), "b": torch.zeros(20), "c": torch.zeros(1)}
    assert shards._in_files(given) == {"a": 1, "b": 1, "c": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder with half.ckpt of a sharded run after two turns, and its weights then and after four."""
    folder = tmp_path_factory.mktemp("shards")

    def work(rank):
        shards.FILE_BYTES = 2000
        built = module()
        after_two = fit(built, 2, ring(), strategy="sharded", devices=2)
        after_two.save_checkpoint(folder / "half.ckpt")
        after_two.save_checkpoint(folder / "half.ckpt")  # over the one before
        half, uninterrupted, resumed = weights_of(built), module(), module(meta_start=True)
        fit(uninterrupted, 4, ring(), strategy="sharded", devices=2)
        fit(resumed, 4, ring(), strategy="sharded", devices=2, resume_from=folder / "half.ckpt")
        found = {"half": half, "uninterrupted": weights_of(uninterrupted), "resumed": weights_of(resumed)}
        torch.save(found, folder / f"rank{rank}.pt")

    in_two_ranks(work, folder)
    return folder


def test_a_sharded_run_resumes_bit_for_bit_from_its_parts(run):
    for rank in range(2):
        found = torch.load(run / f"rank{rank}.pt", weights_only=True)
        assert found["resumed"].keys() == found["uninterrupted"].keys()
        assert all(torch.equal(value, found["uninterrupted"][name]) for name, value in found["resumed"].items())


def test_each_rank_has_written_its_half_and_the_folder_before_is_gone(run):
    (folder,) = run.glob("half.*.shards")
    sizes = [sum(file.stat().st_size for file in folder.glob(f"shard-{rank:05d}-*")) for rank in (1, 2)]
    assert len(list(folder.iterdir())) > 2
    assert max(sizes) < 1.5 * min(sizes)


def test_one_process_reads_the_whole_of_it(run):
    saved, half = read_run_checkpoint(run / "half.ckpt"), torch.load(run / "rank0.pt", weights_only=True)["half"]
    assert all(torch.equal(value, half[name]) for name, value in saved["state_dict"].items())
    model = load_model(run / "half.ckpt")
    assert all(torch.equal(v, half[f"ema.average.{name}"]) for name, v in model.denoiser.state_dict().items())
    moments = [v for state in saved["optimizer_states"] for held in state["state"].values() for v in held.values()]
    assert not any(value.is_meta for value in moments if isinstance(value, torch.Tensor))


def test_one_process_goes_on_and_two_ranks_go_on_with_what_it_saved(run, tmp_path):
    alone = module()
    fit(alone, 3, ring(batch_size=64), resume_from=run / "half.ckpt").save_checkpoint(tmp_path / "alone.ckpt")

    def work(rank):
        built = module()
        again = fit(built, 3, ring(), strategy="sharded", devices=2, resume_from=tmp_path / "alone.ckpt")
        assert again.global_step == 3
        assert all(
            torch.equal(value, torch.nn.Module.state_dict(alone)[name]) for name, value in weights_of(built).items()
        )

    in_two_ranks(work, tmp_path)


def test_a_part_that_is_altered_or_missing_is_refused(run, tmp_path):
    for name in ("half.ckpt",):
        (tmp_path / name).symlink_to(run / name)
    copy = tmp_path / "copy"
    copy.mkdir()
    SafeCheckpointIO().save_checkpoint(read_run_checkpoint(run / "half.ckpt", whole=False), copy / "half.ckpt")
    with pytest.raises(CheckpointError, match="missing"):
        load_model(copy / "half.ckpt")
    assert load_model(tmp_path / "half.ckpt").kind == "student"  # a link is followed
    (folder,) = run.glob("half.*.shards")
    there = copy / folder.name
    there.mkdir()
    for file in folder.iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        (there / file.name).write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_model(copy / "half.ckpt")


def test_consolidate_makes_one_file_and_overwrites_none(run, tmp_path):
    consolidate(str(run / "half.ckpt"), str(tmp_path / "one.ckpt"))
    assert [file.name for file in tmp_path.iterdir()] == ["one.ckpt"]
    one, parts = torch.load(tmp_path / "one.ckpt", weights_only=True), read_run_checkpoint(run / "half.ckpt")
    assert one["state_dict"].keys() == parts["state_dict"].keys()
    assert all(torch.equal(value, parts["state_dict"][name]) for name, value in one["state_dict"].items())
    assert load_model(tmp_path / "one.ckpt").kind == "student"
    for given, target, word in (
        ("half.ckpt", "one.ckpt", "overwrites"),
        (tmp_path / "one.ckpt", "two.ckpt", "already"),
    ):
        with pytest.raises(UsageError, match=word):
            consolidate(str(run / given), str(tmp_path / target))
