"""Weights that diffusers wrote, in every form of theirs that can be read without executing anything."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock_models import save, unet

from fdistill.weight_files import CheckpointError, read_stock_weights

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
    with pytest.raises(CheckpointError, match="never executed: convert it to safetensors"):
        read_stock_weights(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / f"{NAME}.bin")
    with pytest.raises(CheckpointError, match="no tensors by name"):
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
    with pytest.raises(CheckpointError, match=r"truncated or no safetensors file: save or download it again$"):
        read_stock_weights(folder)


def test_shards_stay_in_their_folder(tmp_path):
    network = tmp_path / "network"
    network.mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "outside.safetensors")
    index = {"weight_map": {"x": "../outside.safetensors"}}
    (network / f"{NAME}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names the file of each tensor, beside it: got .\.\./outside"):
        read_stock_weights(network)


def test_an_empty_folder_says_what_it_lacks(tmp_path):
    with pytest.raises(CheckpointError, match=rf"holds no weights: expected {NAME}.safetensors"):
        read_stock_weights(tmp_path)
