"""Files of encoded prompts: they hold what the encoder gave, go on after a kill, and refuse what does not fit."""

import json
import pickle

import pytest
import torch
from diffusers import PixArtTransformer2DModel, SanaTransformer2DModel
from prompt_folders import LONGEST, PROMPTS, WIDTH, LetterEncoder, write_prompts

from fdistill.core.weight_files import CheckpointError
from fdistill.data import encode_prompts as module
from fdistill.data.prompt_files import PromptFiles

NOTHING_ADDED = {"resolution": None, "aspect_ratio": None}


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(module, "FILE_BYTES", 3 * 2 * (LONGEST + 1) * WIDTH)  # three prompts


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_is_what_the_encoder_gave_padded_to_its_longest_prompt(tmp_path, small_files, masked):
    encoder = LetterEncoder(masked)
    done = write_prompts(tmp_path / "p", encoder=encoder, batch_size=4)
    files, order = PromptFiles(tmp_path / "p"), [7, 0, 9, 2]
    assert (done.prompts, done.now, len(files.description.files)) == (10, 10, 4)
    assert done.bytes == sum(file["bytes"] for file in files.description.files)
    given = encoder.encode([PROMPTS[index] for index in order])
    found = files.condition(order)
    length = int(given["mask"].sum(1).max()) if masked else LONGEST
    text = given["text"].half().float()[:, :length] * (given["mask"][:, :length, None] if masked else 1)
    assert torch.equal(found["text"], text)
    assert torch.equal(found["pooled"], given["pooled"].half().float())
    assert found.keys() == {"text", "pooled", *(["mask"] if masked else [])}
    if masked:
        assert torch.equal(found["mask"], given["mask"][:, :length])
    found.check(files.takes, 4)
    assert files.texts(order) == [PROMPTS[index] for index in order]


def test_padding_is_not_stored(tmp_path):
    masked, whole = (write_prompts(tmp_path / str(kind), encoder=LetterEncoder(kind)) for kind in (True, False))
    tokens = sum(len(prompt.split()) for prompt in PROMPTS)
    assert whole.bytes - masked.bytes == pytest.approx(2 * WIDTH * (len(PROMPTS) * LONGEST - tokens), abs=64)


def test_no_prompt_is_there_too_and_files_travel_to_worker_processes(tmp_path):
    write_prompts(tmp_path / "p")
    files = PromptFiles(tmp_path / "p")
    assert files.null()["text"].shape == (1, 1, WIDTH)
    again = pickle.loads(pickle.dumps(files))
    assert torch.equal(again.condition([3])["text"], files.condition([3])["text"])


def test_an_interrupted_command_goes_on_and_writes_the_same_files(tmp_path, small_files):
    write_prompts(tmp_path / "whole", batch_size=2)
    with pytest.raises(RuntimeError, match="killed"):
        write_prompts(tmp_path / "p", encoder=LetterEncoder(broken=PROMPTS[7]), batch_size=2)
    assert sorted(contents(tmp_path / "p")) == ["prompts-00000.safetensors", "prompts-00001.safetensors"]
    (tmp_path / "p" / f".prompts-00002.safetensors.{'0' * 12}.tmp").write_bytes(b"half")
    encoder = LetterEncoder()
    assert write_prompts(tmp_path / "p", encoder=encoder, batch_size=2).now == 4
    assert set(encoder.asked) == {"", *PROMPTS[6:]}
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")
    assert write_prompts(tmp_path / "p", batch_size=2).now == 0


def test_other_prompts_encoders_and_folders_are_refused_and_replaced_on_request(tmp_path):
    folder = tmp_path / "p"
    write_prompts(folder)
    before = contents(folder)
    for changes in ({"prompts": PROMPTS[:3]}, {"encoder": LetterEncoder(scale=2.0)}, {"numbers": "float32"}):
        with pytest.raises(ValueError, match="--overwrite"):
            write_prompts(folder, **changes)
    assert contents(folder) == before
    (folder / "prompts.json").unlink()
    with pytest.raises(ValueError, match="of other prompts"):
        write_prompts(folder, prompts=PROMPTS[:3])
    assert write_prompts(folder, prompts=PROMPTS[:3], overwrite=True).now == 3
    assert len(PromptFiles(folder)) == 3
    (folder / "mine.txt").write_text("keep")
    (folder / "prompts.json").unlink()
    with pytest.raises(ValueError, match=r"mine\.txt"):
        write_prompts(folder, overwrite=True)


def test_embeddings_that_are_not_finite_or_too_large_leave_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        write_prompts(tmp_path / "p", encoder=LetterEncoder(scale=float("nan")))
    with pytest.raises(ValueError, match="bfloat16"):
        write_prompts(tmp_path / "p", encoder=LetterEncoder(scale=1e6))
    assert not (tmp_path / "p").exists()
    write_prompts(tmp_path / "p", encoder=LetterEncoder(scale=1e6), numbers="bfloat16")
    with pytest.raises(ValueError, match="batch_size"):
        write_prompts(tmp_path / "q", batch_size=0)


def test_prompts_that_are_too_long_are_counted(tmp_path):
    assert write_prompts(tmp_path / "p", prompts=["a b", "word " * 20]).cut == {"tokenizer": 1}


def test_damaged_folders_are_told(tmp_path):
    folder = tmp_path / "p"
    write_prompts(folder)
    whole, path = contents(folder), folder / "prompts-00000.safetensors"

    def refused(match):
        with pytest.raises(CheckpointError, match=match):
            PromptFiles(folder)
        for name, content in whole.items():
            (folder / name).write_bytes(content)

    path.write_bytes(whole[path.name][:-8])
    refused("cut off")
    path.unlink()
    refused("prompts-00000")
    (folder / "null.safetensors").unlink()
    refused("null")
    described = json.loads(whole["prompts.json"])
    for change in ({"format": 2}, {"files": []}, {"mask": None}, {"shapes": {"text": [None, 7], "pooled": [6]}}):
        (folder / "prompts.json").write_text(json.dumps(described | change))
        refused(r"prompts\.json")
    described["files"][0]["name"] = "../prompts-00000.safetensors"
    (folder / "prompts.json").write_text(json.dumps(described))
    refused("called")


def _pixart():
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "out_channels": 8}
    network = PixArtTransformer2DModel(
        **size, in_channels=4, num_layers=2, caption_channels=WIDTH, sample_size=8, use_additional_conditions=False
    )
    return lambda x, **text: (
        network(x, timestep=torch.tensor([300] * 4), added_cond_kwargs=NOTHING_ADDED, **text).sample
    )


def _sana():
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_cross_attention_heads": 2}
    crossed = {"cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": WIDTH}
    network = SanaTransformer2DModel(**size, **crossed, in_channels=4, out_channels=4, num_layers=2, sample_size=8)
    return lambda x, **text: network(x, timestep=torch.tensor([300] * 4), **text).sample


@pytest.mark.parametrize("make", [_pixart, _sana])
@torch.no_grad()
def test_a_network_that_reads_the_mask_makes_the_same_of_prompts_without_their_padding(tmp_path, make):
    encoder, order = LetterEncoder(), [0, 3, 6, 1]
    write_prompts(tmp_path / "p", encoder=encoder, numbers="float32")
    torch.manual_seed(0)
    network, x = make(), torch.randn(4, 4, 8, 8)
    whole, stored = encoder.encode([PROMPTS[index] for index in order]), PromptFiles(tmp_path / "p").condition(order)
    assert stored["mask"].shape[1] < whole["mask"].shape[1]
    both = [
        network(x, encoder_hidden_states=found["text"], encoder_attention_mask=found["mask"])
        for found in (whole, stored)
    ]
    torch.testing.assert_close(both[1], both[0], rtol=1e-4, atol=1e-5)
    other = network(x, encoder_hidden_states=stored["text"] + 1, encoder_attention_mask=stored["mask"])
    assert (other - both[0]).abs().max() > 1e-3
