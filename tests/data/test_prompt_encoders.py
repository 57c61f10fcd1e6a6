"""The text encoders of stock pipelines: the tensors that each network takes, as its own pipeline makes them."""

import shutil

import pytest
import torch
from tiny_encoders import pipelines

from fdistill.core.weight_files import CheckpointError
from fdistill.data.encode_prompts import PromptEncoding, encode_prompts
from fdistill.data.prompt_encoders import PromptEncoder, encoder_identity
from fdistill.data.prompt_files import PromptFiles

pytestmark = pytest.mark.system  # seconds, too many for make check

pytest.importorskip("transformers")
TWO = ["a red seven", "on"]
TAKES = {
    "sd15": {"encoder_hidden_states": (16, 16)},
    "sdxl": {"encoder_hidden_states": (16, 32), "added_cond_kwargs.text_embeds": (16,)},
    "pixart": {"encoder_hidden_states": (300, 16), "encoder_attention_mask": (300,)},
    "sana": {"encoder_hidden_states": (300, 16), "encoder_attention_mask": (300,)},
    "sd3": {"encoder_hidden_states": (16 + 256, 32), "pooled_projections": (32,)},
    "flux": {"encoder_hidden_states": (512, 16), "pooled_projections": (16,)},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipelines")
    torch.manual_seed(0)
    for name, make in pipelines().items():
        make().save_pretrained(place / name)
    return place


@pytest.mark.parametrize("name", TAKES)
def test_a_prompt_becomes_what_its_network_takes(folders, name):
    encoder = PromptEncoder(folders / name)
    found = encoder.encode(TWO)
    assert {key: tuple(value.shape[1:]) for key, value in found.items()} == TAKES[name]
    assert all(len(value) == 2 for value in found.values())
    alone = encoder.encode(TWO[1:])
    for key, value in found.items():
        torch.testing.assert_close(value[1:], alone[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TAKES)
def test_no_prompt_is_what_the_pipeline_takes_for_it(folders, name):
    encoder = PromptEncoder(folders / name)
    null = encoder.null()
    encoder.settings.pop("complex_human_instruction", None)  # which Sana puts before prompts alone
    empty = encoder.encode([""])
    assert null.keys() == empty.keys()
    for key, value in null.items():
        torch.testing.assert_close(value, torch.zeros_like(value) if name == "sdxl" else empty[key])


@pytest.mark.parametrize(("name", "ragged"), [("pixart", True), ("sdxl", False)])
def test_stored_prompts_are_the_pipelines_own_at_their_own_tokens(folders, tmp_path, name, ragged):
    encoder = PromptEncoder(folders / name)
    encode_prompts(PromptEncoding(TWO, "a test", encoder, "float32", 2), tmp_path / "p")
    given, files = encoder.encode(TWO), PromptFiles(tmp_path / "p")
    found = files.condition([0, 1])
    text = given["encoder_hidden_states"]
    if ragged:
        mask = given["encoder_attention_mask"]
        length = int(mask.sum(1).max())
        assert torch.equal(found["encoder_attention_mask"], mask[:, :length])
        text = (text * mask[:, :, None])[:, :length]
    assert torch.equal(found["encoder_hidden_states"], text)


def test_prompts_that_are_cut_are_counted_for_each_tokenizer(folders):
    assert PromptEncoder(folders / "sd3").cut(["abcd " * 5, "abcd " * 100, "a"]) == {
        "tokenizer": 2,
        "tokenizer_2": 2,
        "tokenizer_3": 1,
    }
    short = PromptEncoder(folders / "flux", max_tokens=8)
    assert short.encode(["a"])["encoder_hidden_states"].shape == (1, 8, 16)
    with pytest.raises(ValueError, match="max_tokens"):
        PromptEncoder(folders / "sd15", max_tokens=8)


def test_equal_encoders_have_one_identity_and_other_weights_another(folders, tmp_path):
    shutil.copytree(folders / "sdxl", tmp_path / "copy")
    assert encoder_identity(tmp_path / "copy") == encoder_identity(folders / "sdxl")
    (tmp_path / "copy" / "scheduler" / "scheduler_config.json").write_text("{}")
    assert encoder_identity(tmp_path / "copy") == encoder_identity(folders / "sdxl")
    torch.manual_seed(1)
    pipelines()["sdxl"]().save_pretrained(tmp_path / "other")
    assert encoder_identity(tmp_path / "other") != encoder_identity(folders / "sdxl")


def test_incomplete_and_foreign_pipelines_are_told_in_one_line(folders, tmp_path):
    def refused(match):
        with pytest.raises(CheckpointError, match=match) as told:
            PromptEncoder(tmp_path / "p")
        assert "\n" not in str(told.value)

    refused("model_index")
    shutil.copytree(folders / "sd15", tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "tokenizer")
    refused("tokenizer")
    shutil.copytree(folders / "sd15" / "tokenizer", tmp_path / "p" / "tokenizer")
    (tmp_path / "p" / "text_encoder" / "model.safetensors").unlink()
    refused("cannot be loaded")
    index = tmp_path / "p" / "model_index.json"
    text = index.read_text()
    index.write_text(text.replace('"StableDiffusionPipeline"', '"MyPipeline"'))
    refused("MyPipeline")
    index.write_text(text.replace('"transformers"', '"mine"'))
    refused("class of transformers")
    index.write_text(text.replace('"tokenizer"', '"words"'))
    refused("no tokenizer")
