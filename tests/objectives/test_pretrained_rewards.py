"""Rewards with weights: CLIP with random ones as transformers computes it, packages by stubs of their interfaces."""

import itertools
import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_encoders import clip_tokenizer
from torch.testing import assert_close

from fdistill.data import CaptionedDigits, Digits
from fdistill.models.condition import Condition
from fdistill.objectives import DiffInstruct, RewardAugmented
from fdistill.objectives.pretrained_rewards import AestheticReward, ClipReward, PackageReward
from fdistill.objectives.prompt_rewards import CaptionReward

TEXTS = ["a cat", "two red dogs", "a cat"]
CONDITION = Condition({"tokens": torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])})
SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP model of random weights, as transformers saves it."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = clip_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    images = {"image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=sizes | words, vision_config=sizes | images, projection_dim=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
    place = tmp_path_factory.mktemp("clip")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    crop = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop).save_pretrained(place)
    return place


def pictures(n, height, width, seed=0):
    """Smooth ones in 8 bits, and the same in [-1, 1]."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    pixels = (255 * smooth).round().byte()
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels], pixels.float() / 127.5 - 1


def knowing(reward):
    reward.know(CONDITION, TEXTS)
    return reward


@pytest.mark.parametrize("size", [(SIDE, SIDE), (64, 64), (48, 80)])
def test_clip_scores_images_as_transformers_does(size, folder):
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    seen, x = pictures(3, *size)
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=seen, return_tensors="pt")["pixel_values"]
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, pixel_values=pixels).logits_per_image.diagonal()
    score = knowing(ClipReward(str(folder)))(x, CONDITION)
    resized = size != (SIDE, SIDE)  # PIL rounds to 8 bits after it resized
    assert_close(score, expected, rtol=5e-3 if resized else 1e-5, atol=0)
    cosine = knowing(ClipReward(str(folder), scaled=False))(x, CONDITION)
    assert_close(cosine * model.logit_scale.exp(), score)
    assert (cosine.abs() <= 1).all()


def test_a_grey_image_is_a_coloured_one_and_gradients_reach_every_pixel(folder):
    reward = knowing(ClipReward(str(folder)))
    grey = pictures(3, 16, 16)[1][:, :1].requires_grad_(True)
    assert_close(reward(grey, CONDITION), reward(grey.expand(-1, 3, -1, -1), CONDITION))
    (slope,) = torch.autograd.grad(reward(grey, CONDITION).sum(), grey)
    assert (slope != 0).all()
    assert RewardAugmented(DiffInstruct(), reward, 0.1).networks()[-1] is reward


@pytest.mark.parametrize("layers", [1, 3])
def test_the_aesthetic_head_is_linear_in_the_normalised_embedding(layers, folder, tmp_path):
    from transformers import CLIPModel

    generator, state, product = torch.Generator().manual_seed(1), {}, torch.eye(12)
    widths = [*[12, 8, 5][:layers], 1]
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        name = "" if layers == 1 else f"layers.{10 * i}."  # 10 comes after 0 and before 20
        state[f"{name}weight"], state[f"{name}bias"] = torch.randn(b, a, generator=generator), torch.zeros(b)
        product = state[f"{name}weight"] @ product
    torch.save(state, tmp_path / "head.pth")
    save_file(state, tmp_path / "head.safetensors")
    _, x = pictures(3, SIDE, SIDE)
    rewards = [AestheticReward(str(folder), str(tmp_path / f"head.{kind}"))(x) for kind in ("pth", "safetensors")]
    assert torch.equal(*rewards)
    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])[
        ..., None, None
    ]
    with torch.no_grad():
        model = CLIPModel.from_pretrained(folder).eval()
        image = model.visual_projection(model.vision_model(((x + 1) / 2 - mean) / std).pooler_output)
    assert_close(rewards[0], (image / image.norm(dim=1, keepdim=True) @ product.T)[:, 0])


class _Model:
    """Of the three packages: what they are called with is written down; a picture is worth its mean, less its text."""

    called: list = []

    @classmethod
    def worth(cls, text, picture):
        assert isinstance(picture, Image.Image)
        assert (picture.mode, isinstance(text, str)) == ("RGB", True)
        return float(np.asarray(picture).mean()) - len(text)

    def score(self, prompt, image):
        return self.worth(prompt, image)

    def reward(self, image_paths, prompts):
        found = [self.worth(text, picture) for text, picture in zip(prompts, image_paths, strict=True)]
        return torch.tensor([[value, 0.5] for value in found])


def stub(package, monkeypatch):
    """Of the interface that the package's source has: image-reward 1.5, hpsv2 1.2.0, hpsv3 1.0.0."""
    _Model.called = called = []
    outer = types.ModuleType({"image-reward": "ImageReward"}.get(package, package))

    def load(name="ImageReward-v1.0", device="cpu", download_root=None, med_config=None):
        called.append((name, str(device), med_config))
        return _Model()

    def score(img_path, prompt, cp=None, hps_version="v2.0"):
        called.append((prompt, cp, hps_version))
        return [_Model.worth(prompt, picture) for picture in img_path]

    def inferencer(config_path=None, checkpoint_path=None, device="cuda", differentiable=False):
        called.append((checkpoint_path, device))
        return _Model()

    outer.load, outer.HPSv3RewardInferencer = load, inferencer
    monkeypatch.setitem(sys.modules, outer.__name__, outer)
    if package == "hpsv2":
        outer.img_score = types.ModuleType("hpsv2.img_score")
        outer.img_score.score = score
        monkeypatch.setitem(sys.modules, "hpsv2.img_score", outer.img_score)
    return called


@pytest.mark.parametrize(
    ("package", "name"), [("image-reward", "ImageReward-v1.0"), ("hpsv2", "v2.1"), ("hpsv3", "HPSv3")]
)
def test_each_package_gets_pictures_prompts_and_weights(package, name, monkeypatch, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    seen, x = pictures(3, 8, 8)
    expected = torch.tensor([_Model.worth(text, one) for text, one in zip(TEXTS, seen, strict=True)])
    for weights in (name, str(file)):
        called = stub(package, monkeypatch)
        reward = knowing(PackageReward(package, weights))
        assert not reward.is_differentiable
        assert called == []  # read when first asked
        assert_close(reward(x, CONDITION), expected)
        file_of = weights if weights != name else None
        assert (
            called
            == {
                "image-reward": [(weights, "cpu", str(tmp_path / "med_config.json") if file_of else None)],
                "hpsv2": [(text, file_of, "v2.0" if file_of else name) for text in sorted(set(TEXTS))],
                "hpsv3": [(file_of, "cpu")],
            }[package]
        )


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PackageReward("hpsv2", "v2.1"), r"fdistill\[hpsv2\]"),
        (lambda: PackageReward("hpsv3", "none.pt"), "a file, or HPSv3"),
        (lambda: PackageReward("clip", "x"), "image-reward, hpsv2, hpsv3"),
        (lambda: ClipReward("no/such/folder/here"), "no CLIPModel"),
    ],
)
def test_what_is_missing_is_said_in_one_line(build, words):
    with pytest.raises(ValueError, match=words) as error:
        build()
    assert "\n" not in str(error.value)


def test_a_head_of_another_model_is_refused(folder, tmp_path):
    save_file({"weight": torch.zeros(1, 7)}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"12 numbers: got weight \[1, 7\]"):
        AestheticReward(str(folder), str(tmp_path / "head.safetensors"))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"fdistill\[text\]"):
        ClipReward("anything")


def test_prompts_are_known_whatever_the_padding_of_their_batch(folder):
    reward = ClipReward(str(folder))
    padded = {"tokens": torch.tensor([[[1.0], [2.0], [0.0]]]), "mask": torch.tensor([[1, 1, 0]])}
    short = {name: value[:, :2] for name, value in padded.items()}
    reward.know(Condition(padded), ["a cat"])
    assert reward.texts(Condition(short), 1) == ["a cat"]
    other = Condition({"tokens": torch.tensor([[[1.0], [3.0]]]), "mask": torch.tensor([[1, 1]])})
    for unknown in (other, None):
        with pytest.raises(ValueError, match="prompt"):
            reward.texts(unknown, 1)


def test_data_tell_the_prompts_of_their_conditions(folder):
    reward, data = ClipReward(str(folder)), CaptionedDigits()
    reward.prepare(data)
    batch = next(iter(data.train_dataloader()))
    assert all(text.startswith("a ") for text in reward.texts(batch.condition, len(batch.x)))
    with pytest.raises(ValueError, match="CaptionReward judges captions"):
        CaptionReward().prepare(Digits())
    spec = json.loads(json.dumps(reward.spec()))
    assert type(type(reward).from_spec(spec)) is ClipReward
