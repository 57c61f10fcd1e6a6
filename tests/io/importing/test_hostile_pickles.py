"""Pickles of EDM made to fill memory, hang, or slip nonsense into a teacher are refused in one line with their path."""

import math
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from edm_stand_in import Persistent, cases, network_of_case, weights_of_case, write
from refusals import refused_lean

from fdistill.core.weight_files import CheckpointError
from fdistill.io.importing import import_model
from fdistill.io.importing.edm_adm import adm_weights

CASES = cases()


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """The line that refuses a snapshot, given as its content or its bytes."""

    def of(content):
        path = tmp_path / "snapshot.pkl"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write(monkeypatch, path, content)
        return refused_lean(path)

    return of


def snapshot(case="ddpmpp", inner=None, state=None, encoder=None, **arguments):
    """The network of a case, its inner module and its state changed by functions, and arguments replaced."""
    case = CASES[case]
    network = network_of_case(case, weights_of_case(case), **arguments)
    network.state.update(state or {})
    if inner is not None:
        inner(network.state["_modules"][case["inner"]].state)
    return {"ema": network, "encoder": encoder}


@pytest.mark.parametrize(
    ("case", "arguments", "words"),
    [
        ("ddpmpp", {"num_blocks": 2**20 - 1}, "no more layers than there are tensors for"),
        ("classes", {"num_blocks": 2**20 - 1}, "no more layers than there are tensors for"),
        ("ddpmpp", {"num_blocks": True}, "num_blocks is an integer from 1 to 1,048,576: got True"),
        ("ddpmpp", {"num_blocks": 0}, "num_blocks is an integer from 1"),
        ("ddpmpp", {"model_channels": "a" * 4000, "channel_mult": [2**20 - 1] * 3}, "model_channels has another form"),
        ("adm_classes", {"model_channels": [1] * 64, "channel_mult": [2**20 - 1] * 60}, "another form than in any"),
        ("ddpmpp", {"model_channels": 16.5}, "model_channels is an integer"),
        ("ddpmpp", {"model_channels": 0}, "model_channels is an integer from 1"),
        ("ddpmpp", {"img_resolution": "8"}, "img_resolution has another form"),
        ("ddpmpp", {"attn_resolutions": 16}, "attn_resolutions has another form"),
        ("ddpmpp", {"channel_mult": []}, "SongUNet that is not known here"),
        ("ddpmpp", {"encoder_type": 3}, "encoder_type has another form"),
        ("ddpmpp", {"label_dropout": "x"}, "label_dropout has another form"),
        ("ddpmpp", {"label_dim": -3}, "label_dim is an integer from 0"),
        ("ddpmpp", {"dropout": 7}, "dropout is a number from 0 to 1: got 7"),
        ("ddpmpp", {"a\n\x1b[2J": 1}, r"no network here has a\n\x1b[2J=1"),
        ("classes", {"channels_per_head": 0}, "channels_per_head is an integer from 1"),
    ],
)
def test_arguments_of_no_network(case, arguments, words, refusal):
    assert words in refusal(snapshot(case, **arguments))


@pytest.mark.parametrize(
    ("case", "state", "words"),
    [
        *(
            ("ddpmpp", {"sigma_data": v}, "sigma_data is a number")
            for v in (10**400, math.nan, math.inf, 0, "0.5", True)
        ),
        ("ddpmpp", {"sigma_data": torch.zeros(2)}, "sigma_data is a number"),
        ("ddpmpp", {"sigma_min": 10**400}, "sigma_min is a number"),
        ("ddpmpp", {"sigma_max": math.nan}, "sigma_max is a number"),
        ("ddpmpp_classes_vp", {"M": math.nan}, "M is a number from 2"),
        ("ddpmpp_classes_vp", {"M": 1}, "M is a number from 2"),
        ("ddpmpp_classes_vp", {"beta_d": math.inf}, "beta_d is a number"),
        ("ddpmpp_classes_vp", {"beta_min": math.nan}, "beta_min is a number"),
        ("ddpmpp", {"_modules": {"model": torch.zeros(2)}}, "EDMPrecond around nothing"),
    ],
)
def test_states_of_no_preconditioning(case, state, words, refusal):
    assert words in refusal(snapshot(case, state=state))


def one_under_many_names(state):
    tensor = torch.zeros(100_000, dtype=torch.float16)
    state["_parameters"] = {f"w{i}": tensor for i in range(2000)}


def a_table_of_many_modules(state):
    table = {f"p{i}": torch.zeros(1) if i == 0 else None for i in range(2000)}
    state["_modules"] = {f"m{i}": Persistent("Layer", {"_parameters": table}) for i in range(1000)}
    table |= dict.fromkeys(table, table["p0"])


def a_long_name_of_many_modules(state):
    name = "n" * 100_000
    state["_modules"] = {f"m{i}": Persistent("Layer", {"_parameters": {name: torch.zeros(1)}}) for i in range(50)}


def a_chain_of_long_names(state):
    for _ in range(50):
        state["_modules"] = {"n" * 50: Persistent("Layer", dict(state))}


def escapes(state):
    state["_parameters"]["a\n\x1b[31m"] = torch.zeros(1)


def integers(state):
    state["_buffers"]["steps"] = torch.zeros(3, dtype=torch.int64)


def not_finite(state):
    state["_buffers"] |= {"a": torch.full((2,), math.nan), "b": torch.full((2,), math.inf)}


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (one_under_many_names, "no larger than the storages that they lie in"),
        (a_table_of_many_modules, "at most 100,000 tensors, of short names"),
        (a_long_name_of_many_modules, "at most 100,000 tensors, of short names"),
        (a_chain_of_long_names, "at most 100,000 tensors, of short names"),
        (escapes, r"a\n\x1b[31m unexpected"),
        (integers, "1 tensors are not: steps of torch.int64"),
        (not_finite, "2 tensors are not: a not finite; b not finite"),
    ],
)
def test_weights_of_no_network(inner, words, refusal):
    assert words in refusal(snapshot(inner=inner))


def nested(depth):
    value = ("a",)
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vae_name": "a\n# hi\n<script>"}, r"vae_name is one line of at most 200 characters: got 'a\\n# hi"),
        ({"vae_name": "\ud800"}, "vae_name is one line"),
        ({"vae_name": nested(40)}, "vae_name is one line"),
        ({"scale": np.ones(2, np.float32)}, "scale of latents is finite, one for each of 3 channels"),
        ({"scale": np.ones((1, 3), np.float32)}, "scale of latents is finite"),
        ({"scale": np.float32([1, np.nan, 1])}, "scale of latents is finite"),
        ({"bias": np.float32([1, np.inf, 1])}, "bias of latents is finite"),
        ({"bias": np.ones(100_000, np.float32)}, "bias of latents is finite"),
        ({"scale": np.float32([1, 0, 1])}, "is not zero"),
    ],
)
def test_encoders_of_no_latents(changes, words, refusal):
    ones = np.ones(3, np.float32)
    encoder = Persistent("StabilityVAEEncoder", {"vae_name": "a/vae", "scale": ones, "bias": ones} | changes)
    message = refusal(snapshot("images", encoder=encoder))
    assert words.replace("\\\\", "\\") in message


def frame(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def storage_of(dtype):
    """What torch writes of an empty storage, with another pickle in place of the one that says its type."""
    facts = b"".join(pickled(fact) for fact in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    data = facts + dtype + pickled([]) + struct.pack("<q", 0)
    body = text("torch.storage") + text("_load_from_bytes") + b"\x93B" + len(data).to_bytes(4, "little") + data
    return frame(b"}" + text("ema") + body + b"\x85Rs")


def pickled(value):
    return pickle.dumps(value, protocol=2)


def array_again_and_again():
    data = bytes(1_000_000)
    make = text("numpy._core.multiarray") + text("_reconstruct") + b"\x93\x94"
    dtype = text("numpy") + text("dtype") + b"\x93" + text("u1") + b"\x85R\x94"
    held = b"\x96" + struct.pack("<Q", len(data)) + data
    state = b"(K\x01J" + struct.pack("<i", len(data)) + b"\x85h\x01\x89" + held + b"t\x94"
    return frame(make, dtype, state, b"(", b"h\x00)Rh\x02b" * 1000, b"t")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        *((storage_of(dtype), "one whole storage") for dtype in (b"N.", b"K\x01.", b"].")),
        (array_again_and_again(), "no snapshot|too many values|truncated"),
        (frame(b"}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"Ns"), "more than 32 bits as a key"),
    ],
    ids=["no type", "a number for a type", "a list for a type", "array", "long key"],
)
def test_pickles_of_no_snapshot(data, words, refusal):
    message = refusal(data)
    assert any(word in message for word in words.split("|"))


def test_a_pickle_has_no_more_opcodes_than_a_network_needs(refusal, monkeypatch):
    monkeypatch.setattr("fdistill.io.importing.edm_machine._MOST", 100)
    assert "more than 100 opcodes" in refusal(frame(b")" + b"\x85" * 100))


def test_two_tensors_for_one_place_of_adm():
    config = {"block_out_channels": [128, 128], "sample_size": 8}
    weights = {name: torch.zeros(1) for name in ("enc.8x8_in0.conv0.bias", "dec.4x4_in0.conv0.bias")}
    with pytest.raises(ValueError, match="bias"):
        adm_weights(weights, config)


def test_a_pipe_is_no_file_to_wait_for(tmp_path):
    os.mkfifo(tmp_path / "a.pkl")
    with pytest.raises(CheckpointError, match="file"):
        import_model(tmp_path / "a.pkl")
