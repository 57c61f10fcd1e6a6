"""Weights that diffusers wrote, in every form of theirs that can be read without executing anything."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock_models import save, unet

from fdistill.core.weight_files import CheckpointError, read_stock_weights
from fdistill.core.weight_names import unwrapped

NAME = "diffusion_pytorch_model"


@pytest.fixture
def folder(tmp_path):
    return save(unet(), tmp_path)


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_one_file_and_several_shards_hold_the_same_tensors(tmp_path):
    network = unet()
    network.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert (tmp_path / "shards" / f"{NAME}.safetensors.index.json").is_file()
    assert same(read_stock_weights(tmp_path / "shards"), network.state_dict())
    assert same(read_stock_weights(save(network, tmp_path / "one")), network.state_dict())


def test_a_half_precision_variant_is_taken_where_there_is_no_other(folder):
    (folder / f"{NAME}.safetensors").rename(folder / f"{NAME}.fp16.safetensors")
    assert same(read_stock_weights(folder), unet().state_dict())


def test_a_bin_of_tensors_is_read_and_one_of_anything_else_is_not(tmp_path):
    torch.save(unet().state_dict(), tmp_path / f"{NAME}.bin")
    assert same(read_stock_weights(tmp_path), unet().state_dict())
    torch.save({"x": print}, tmp_path / f"{NAME}.bin")
    with pytest.raises(CheckpointError, match="never"):
        read_stock_weights(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / f"{NAME}.bin")
    with pytest.raises(CheckpointError, match="tensors"):
        read_stock_weights(tmp_path)


def test_old_names_of_attention_become_todays(folder):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(folder / f"{NAME}.safetensors")
    renamed = {}
    for name, value in weights.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = value
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / f"{NAME}.safetensors")
    assert same(read_stock_weights(folder), weights)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
def test_a_broken_file_says_so_in_one_line(folder, content):
    (folder / f"{NAME}.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="download"):
        read_stock_weights(folder)


def test_shards_stay_in_their_folder(tmp_path):
    network = tmp_path / "network"
    network.mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "outside.safetensors")
    index = {"weight_map": {"x": "../outside.safetensors"}}
    (network / f"{NAME}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="tensor"):
        read_stock_weights(network)


def test_an_empty_folder_says_what_it_lacks(tmp_path):
    with pytest.raises(CheckpointError, match=rf"holds no weights: expected {NAME}.safetensors"):
        read_stock_weights(tmp_path)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["8KB", "1GB"])
def test_every_form_that_diffusers_writes_is_read(variant, safe, size, tmp_path):
    network = unet().half()
    network.save_pretrained(tmp_path, variant=variant, safe_serialization=safe, max_shard_size=size)
    assert ("index" in " ".join(file.name for file in tmp_path.iterdir())) == (size == "8KB")
    assert same(read_stock_weights(tmp_path), network.state_dict())


@pytest.mark.parametrize("name", [f"{NAME}.fp16.safetensors.index.json", f"{NAME}.safetensors.fp16.index.json"])
def test_older_names_of_an_index_are_known(name, tmp_path):
    network = unet()
    network.save_pretrained(tmp_path, variant="fp16", max_shard_size="8KB")
    next(tmp_path.glob("*index*")).rename(tmp_path / name)
    assert same(read_stock_weights(tmp_path), network.state_dict())


def test_shards_without_their_index_are_read_where_all_are_there(tmp_path):
    network = unet()
    network.save_pretrained(tmp_path, max_shard_size="8KB")
    next(tmp_path.glob("*index*")).unlink()
    assert same(read_stock_weights(tmp_path), network.state_dict())
    next(tmp_path.glob("*-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match="shards"):
        read_stock_weights(tmp_path)


def test_full_precision_comes_before_a_variant_and_two_variants_are_a_question(folder):
    halves = {name: value.half() for name, value in unet().state_dict().items()}
    save_file(halves, folder / f"{NAME}.fp16.safetensors")
    assert same(read_stock_weights(folder), unet().state_dict())
    (folder / f"{NAME}.safetensors").unlink()
    torch.save(unet().state_dict(), folder / f"{NAME}.bin")
    assert same(read_stock_weights(folder), unet().state_dict())
    (folder / f"{NAME}.bin").unlink()
    assert same(read_stock_weights(folder), halves)
    save_file(halves, folder / f"{NAME}.non_ema.safetensors")
    with pytest.raises(CheckpointError, match="non_ema"):
        read_stock_weights(folder)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace(".", "._orig_mod.", 1),
        lambda name: f"ema.{name}",
        lambda name: f"state_dict.model.{name}",
        lambda name: f"unet.{name}",
    ],
)
def test_names_lose_what_wrappers_put_before_them(wrap, folder):
    weights = unet().state_dict()
    save_file({wrap(name): value for name, value in weights.items()}, folder / f"{NAME}.safetensors")
    assert same(read_stock_weights(folder), weights)


def test_names_that_only_begin_like_a_wrapper_stay():
    assert unwrapped({"model.a": 1, "b.a": 2}) == {"model.a": 1, "b.a": 2}
    assert unwrapped({"model": 1}) == {"model": 1}
    assert unwrapped({"a._orig_mod.b": 1, "a.b": 2}) == {"a._orig_mod.b": 1, "a.b": 2}


@pytest.mark.parametrize("nest", [{"state_dict": ...}, {"model": {"module": ...}, "epoch": 3}, {"ema": ..., "lr": 0.1}])
def test_a_bin_may_hold_its_tensors_below_a_name(nest, tmp_path):
    def filled(value):
        return (
            {k: filled(v) for k, v in value.items()} if isinstance(value, dict) else weights if value is ... else value
        )

    weights = unet().state_dict()
    torch.save(filled(nest), tmp_path / f"{NAME}.bin")
    assert same(read_stock_weights(tmp_path), weights)


def test_a_file_of_several_networks_is_refused(folder):
    weights = unet().state_dict()
    both = {f"{name}.{key}": value.clone() for name in ("ema", "model") for key, value in weights.items()}
    save_file(both, folder / f"{NAME}.safetensors")
    with pytest.raises(CheckpointError, match="model"):
        read_stock_weights(folder)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_pointer_of_git_lfs_says_so(suffix, tmp_path):
    (tmp_path / f"{NAME}.{suffix}").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="lfs"):
        read_stock_weights(tmp_path)


def test_what_lies_there_in_place_of_weights_is_named(tmp_path):
    (tmp_path / "diffusion_flax_model.msgpack").touch()
    with pytest.raises(CheckpointError, match="msgpack"):
        read_stock_weights(tmp_path)
