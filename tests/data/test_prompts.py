"""Encoded prompts as data: batches are a function of seed and number, and no image or text encoder is needed."""

import pytest
import torch
from latent_folders import latents
from prompt_folders import PROMPTS, WIDTH, write_prompts

from fdistill.core.weight_files import CheckpointError
from fdistill.data import GenerativeDataModule, LatentFolder, PromptedLatents, Prompts
from fdistill.data.prompt_files import PromptFiles


@pytest.fixture
def folder(tmp_path):
    write_prompts(tmp_path / "p")
    return str(tmp_path / "p")


def first(data, count):
    stream = iter(data.train_dataloader())
    return [next(stream) for _ in range(count)]


def equal(a, b):
    return a.condition.keys() == b.condition.keys() and all(
        torch.equal(a.condition[n], b.condition[n]) for n in a.condition
    )


def test_a_pass_gives_every_prompt_once_beside_no_image(folder):
    data = Prompts(folder, [4, 2, 2], batch_size=5)
    batches = first(data, 2)
    assert all(batch.x.isnan().all() and tuple(batch.x.shape) == (5, 4, 2, 2) for batch in batches)
    assert all(torch.equal(batch.classes, torch.zeros(5, dtype=torch.int64)) for batch in batches)
    pooled = torch.cat([batch.condition["pooled"] for batch in batches])
    every = PromptFiles(data.files.folder).condition(range(10))["pooled"]
    assert torch.equal(pooled.sort(0).values, every.sort(0).values)
    assert data.takes["text"].shape == (None, WIDTH)
    assert data.num_classes == 0
    assert data.null()["mask"].tolist() == [[1]]
    with pytest.raises(ValueError, match="Prompts has no real"):
        data.held_out_samples  # noqa: B018


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_stream_goes_on_where_it_stopped(folder, num_workers):
    whole = first(Prompts(folder, [4, 2, 2], batch_size=3, seed=5), 6)
    again = Prompts(folder, [4, 2, 2], batch_size=3, seed=5, num_workers=num_workers)
    again.load_state_dict({"batches_seen": 4, "training samples": 10, "held-out samples": 10})
    assert all(equal(a, b) for a, b in zip(whole[4:], first(again, 2), strict=True))


def test_the_recipe_rebuilds_the_data(folder):
    data = GenerativeDataModule.from_spec(Prompts(folder, [4, 2, 2], batch_size=3).spec())
    assert equal(first(data, 1)[0], first(Prompts(folder, [4, 2, 2], batch_size=3), 1)[0])


def test_some_prompts_are_asked_for_with_their_texts(folder):
    condition, texts = Prompts(folder, [4, 2, 2]).named_conditions(4)
    assert texts == [PROMPTS[0], PROMPTS[3], PROMPTS[6], PROMPTS[9]]
    assert torch.equal(
        condition["pooled"], PromptFiles(Prompts(folder, [1]).files.folder).condition([0, 3, 6, 9])["pooled"]
    )


def test_missing_and_broken_prompts_are_told_on_first_use(tmp_path, folder):
    with pytest.raises(CheckpointError, match=r"prompts\.json"):
        first(Prompts(str(tmp_path / "nothing"), [4, 2, 2]), 1)
    with pytest.raises(ValueError, match="sample_shape"):
        Prompts(folder, [])


def test_a_nan_in_a_file_stops_the_run(tmp_path, folder):
    path = tmp_path / "p" / "prompts-00000.safetensors"
    content = path.read_bytes()
    numbers = torch.full((len(PROMPTS) * WIDTH,), torch.nan, dtype=torch.float16).numpy().tobytes()
    whole = PromptFiles(tmp_path / "p").condition(range(10))["pooled"].half().numpy().tobytes()
    assert whole in content
    path.write_bytes(content.replace(whole, numbers))
    with pytest.raises(CheckpointError, match="finite"):
        first(Prompts(folder, [4, 2, 2], batch_size=10), 1)


def test_captions_follow_their_latents_mirror_images_too(tmp_path):
    folder = str(latents(tmp_path, count=10, flips=True))
    write_prompts(tmp_path / "p")
    settings = {"sample": False, "held_out_fraction": 0.2, "batch_size": 16}
    data, plain = PromptedLatents(folder, str(tmp_path / "p"), **settings), LatentFolder(folder, **settings)
    assert torch.equal(first(data, 1)[0].x, first(plain, 1)[0].x)
    every, train = data.files.condition(range(10)), data.load_splits()[0]
    assert len(train) == 16
    for index in range(16):
        found = train.__getitems__([index])
        assert torch.equal(found.x, plain.load_splits()[0].__getitems__([index]).x)
        assert torch.equal(found.condition["pooled"][0], every["pooled"][train.chosen[index % 8]])
    assert data.takes.keys() == {"text", "pooled", "mask"}
    assert data.in_pixels().train_samples.sample_shape == (3, 8, 8)


def test_images_of_captioned_latents_know_the_prompts(tmp_path):
    """Rewards see these images, and read prompts."""
    write_prompts(tmp_path / "p")
    shown = PromptedLatents(str(latents(tmp_path, count=10)), str(tmp_path / "p")).in_pixels()
    (conditions, texts), *others = shown.prompts_in_parts()
    assert (texts, others) == (list(PROMPTS), [])
    assert conditions["pooled"].shape[0] == 10
    assert shown.named_conditions(2)[1] == [PROMPTS[0], PROMPTS[9]]


def test_as_many_captions_as_latents_are_needed(tmp_path):
    folder = str(latents(tmp_path, count=10))
    write_prompts(tmp_path / "p", prompts=PROMPTS[:9])
    with pytest.raises(ValueError, match="caption for each image"):
        first(PromptedLatents(folder, str(tmp_path / "p")), 1)
