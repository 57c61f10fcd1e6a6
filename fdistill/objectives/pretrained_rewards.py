"""Rewards that others trained: CLIP, PickScore, HPSv2 and aesthetic scores by transformers, others by their packages.

Nothing is imported or read before such a reward is built, and nothing is unpickled but tensors and plain values.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fdistill.evaluation.features.pretrained import read_weights
from fdistill.models.condition import Conditioned
from fdistill.objectives.prompt_rewards import PromptReward
from fdistill.objectives.rewards import Reward
from fdistill.sampling.pictures import to_pixels

Scorer = Callable[[list[Image.Image], list[str]], Sequence[float]]
"""Pictures and their prompts -> one number each."""

Package = Literal["image-reward", "hpsv2", "hpsv3"]
"""Names of packages on PyPI."""


class ClipReward(PromptReward):
    """How well an image fits its prompt: the cosine of their embeddings by a `CLIPModel` of transformers.

    It is the CLIP score, PickScore (arXiv 2305.01569) and HPSv2 (arXiv 2306.09341), by the weights: all three are a
    CLIP model. It has a gradient, and takes images of any size: they are resized by antialiased bicubic interpolation.
    """

    def __init__(self, model: str, scaled: bool = True) -> None:
        """Args:
        model: a folder with the model's safetensors, tokenizer and preprocessor_config.json, or a name on the hub.
        scaled: whether the cosine is multiplied by the model's exp(logit_scale), about 100, as PickScore is; else it is
            as HPSv2 gives it.

        Raises:
            ValueError: where transformers is not installed, or such a model cannot be read.
        """
        super().__init__()
        transformers = _library("transformers", "ClipReward", "text")
        with _one_line(model):
            self.clip, self._mean, self._std = _clip(transformers, model)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self.scaled = scaled

    def forward(self, x: Tensor, condition: Conditioned) -> Tensor:
        """[B] of images [B, 1 or 3, H, W], in float32 whatever the precision of the networks."""
        texts = self.texts(condition, len(x))
        distinct = sorted(set(texts))
        with torch.autocast(x.device.type, enabled=False):
            image = _embedded(self.clip, _seen(x, self.clip, self._mean, self._std))
            with torch.no_grad():
                text = self._of_texts(distinct)[[distinct.index(one) for one in texts]]
            cosine = (image * text).sum(1)
            return cosine * self.clip.logit_scale.exp() if self.scaled else cosine

    def _of_texts(self, texts: list[str]) -> Tensor:
        """Embeddings [n, d] of norm 1."""
        length = self.clip.config.text_config.max_position_embeddings
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        read = self.clip.text_model(**tokens.to(self.clip.device))
        return F.normalize(self.clip.text_projection(read.pooler_output), dim=1)


class AestheticReward(Reward):
    """How people rate the look of an image: a head on the image embedding of a `CLIPModel`, whatever the prompt.

    The heads of the LAION aesthetic predictors, which are of CLIP ViT-L/14, are one linear layer or five without an
    activation between them. It has a gradient.
    """

    def __init__(self, model: str, head: str) -> None:
        """Args:
        model: as of `ClipReward`.
        head: file of the head's weights, .safetensors, or of torch.save (.pt, .pth, .bin); there is no dropout.

        Raises:
            ValueError: as of `ClipReward`, or where the head is none of such embeddings.
        """
        super().__init__()
        transformers = _library("transformers", "AestheticReward", "text")
        with _one_line(model):
            self.clip, self._mean, self._std = _clip(transformers, model)
        self.head = _linear_layers(read_weights(head), self.clip.config.projection_dim, head)

    def forward(self, x: Tensor, condition: Conditioned = None) -> Tensor:
        """[B] of images [B, 1 or 3, H, W], in float32; the condition is not read."""
        with torch.autocast(x.device.type, enabled=False):
            image = _embedded(self.clip, _seen(x, self.clip, self._mean, self._std))
            return self.head(image).squeeze(1)


class PackageReward(PromptReward):
    """ImageReward, HPSv2 or HPSv3 by the package of its authors, which scores pictures of 8 bits without a gradient.

    These packages ask for other versions of transformers, timm or pytest than fdistill's other extras: give them an
    environment of their own.
    """

    is_differentiable = False

    def __init__(self, package: Package, weights: str) -> None:
        """Args:
        package: image-reward, hpsv2 or hpsv3.
        weights: the checkpoint's file; ImageReward's has its med_config.json beside it. Or a name that the package
            downloads: "ImageReward-v1.0", HPSv2's version "v2.0" or "v2.1", "HPSv3".

        Raises:
            ValueError: for another package, or one that is not installed.
        """
        super().__init__()
        if package not in get_args(Package):
            raise ValueError(f"package is one of {', '.join(get_args(Package))}: got {package!r}")
        self.package, self.weights = package, weights
        names = _PACKAGES[package].names
        if not Path(weights).is_file() and weights not in names:
            raise ValueError(
                f"weights of {package} are a file, or {' or '.join(names)}, which it downloads: got {weights}"
            )
        self._library()
        self._scorer: Scorer | None = None

    def _library(self) -> Any:
        return _library(_PACKAGES[self.package].module, f"PackageReward of {self.package}", self.package)

    @torch.no_grad()
    def forward(self, x: Tensor, condition: Conditioned) -> Tensor:
        """[B] float32 of images [B, 1 or 3, H, W]."""
        if self._scorer is None:  # on the device of the first images
            self._scorer = _PACKAGES[self.package].load(self._library(), self.weights, x.device)
        pictures = [Image.fromarray(pixels) for pixels in to_pixels(_coloured(x).float().cpu())]
        return torch.tensor(self._scorer(pictures, self.texts(condition, len(x))), device=x.device).float()


def _image_reward(library: Any, weights: str, device: torch.device) -> Scorer:
    """image-reward 1.5: load(name or file, device, med_config=), and score(prompt, picture) -> float."""
    config = Path(weights).parent / "med_config.json" if Path(weights).is_file() else None
    model = library.load(weights, device=device, med_config=None if config is None else str(config))
    return lambda pictures, texts: [model.score(text, picture) for picture, text in zip(pictures, texts, strict=True)]


def _hpsv2(library: Any, weights: str, device: torch.device) -> Scorer:
    """hpsv2 1.2: score(pictures, prompt, cp= or hps_version=) -> list; it reads its weights again in every call."""
    how = {"cp": weights} if Path(weights).is_file() else {"hps_version": weights}

    def scores(pictures: list[Image.Image], texts: list[str]) -> list[float]:
        found = [0.0] * len(texts)
        for text in sorted(set(texts)):
            rows = [row for row, other in enumerate(texts) if other == text]
            values = library.score([pictures[row] for row in rows], text, **how)
            for row, value in zip(rows, values, strict=True):
                found[row] = float(value)
        return found

    return scores


def _hpsv3(library: Any, weights: str, device: torch.device) -> Scorer:
    """hpsv3 1.0: HPSv3RewardInferencer(checkpoint_path=, device=).reward(image_paths, prompts) -> mean and spread."""
    file = weights if Path(weights).is_file() else None
    inferencer = library.HPSv3RewardInferencer(checkpoint_path=file, device=str(device))
    return lambda pictures, texts: inferencer.reward(image_paths=pictures, prompts=texts)[:, 0].float().tolist()


class _Known(NamedTuple):
    """A package: what of it is imported, what scores by it, and names of the weights that it downloads."""

    module: str
    load: Callable[[Any, str, torch.device], Scorer]
    names: tuple[str, ...]


_PACKAGES = {
    "image-reward": _Known("ImageReward", _image_reward, ("ImageReward-v1.0",)),
    "hpsv2": _Known("hpsv2.img_score", _hpsv2, ("v2.0", "v2.1")),
    "hpsv3": _Known("hpsv3", _hpsv3, ("HPSv3",)),
}


def _clip(transformers: Any, model: str) -> tuple[Any, list[float], list[float]]:
    """A CLIPModel in float32, and the mean and standard deviation of its pixels in [0, 1]."""
    clip = transformers.CLIPModel.from_pretrained(model, use_safetensors=True, dtype=torch.float32)
    base = importlib.import_module("transformers.image_processing_base")
    seen, _ = base.ImageProcessingMixin.get_image_processor_dict(model)
    return clip.requires_grad_(False).eval(), seen["image_mean"], seen["image_std"]


def _seen(x: Tensor, clip: Any, mean: list[float], std: list[float]) -> Tensor:
    """Images in [-1, 1] in the size and with the normalisation of a CLIP model, cut to their central square."""
    side, x = clip.config.vision_config.image_size, _coloured(x).float()
    size = [length * side // min(x.shape[2:]) for length in x.shape[2:]]
    if size != list(x.shape[2:]):
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = ((length - side) // 2 for length in size)
    x = x[:, :, top : top + side, left : left + side]
    mean_of, std_of = (x.new_tensor(values)[:, None, None] for values in (mean, std))
    return ((x + 1) / 2 - mean_of) / std_of


def _coloured(x: Tensor) -> Tensor:
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"it reads images [B, 1 or 3, H, W]: got {list(x.shape)}")
    return x.expand(-1, 3, -1, -1)


def _embedded(clip: Any, pixels: Tensor) -> Tensor:
    """Image embeddings [B, d] of norm 1."""
    return F.normalize(clip.visual_projection(clip.vision_model(pixels).pooler_output), dim=1)


def _linear_layers(weights: dict[str, Tensor], width: int, source: str) -> torch.nn.Sequential:
    """The layers of a head, in the order of their names."""
    names = [name.removesuffix("weight") for name, value in weights.items() if name.endswith("weight")]
    names.sort(key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")])
    layers = []
    for name in names:
        weight, bias = weights[f"{name}weight"].float(), weights.get(f"{name}bias")
        if weight.ndim != 2 or weight.shape[1] != width:
            raise ValueError(
                f"{source} is a head of embeddings of {width} numbers: got {name}weight {list(weight.shape)}"
            )
        layer = torch.nn.Linear(width, len(weight), bias is not None)
        layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias.float()}))
        layers.append(layer)
        width = len(weight)
    if not layers or width != 1:
        raise ValueError(
            f"{source} is a head that gives one number: got {len(layers)} linear layers that end in {width}"
        )
    return torch.nn.Sequential(*layers).requires_grad_(False)


def _library(module: str, what: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} does not import {module} here ({error}): pip install 'fdistill[{extra}]'") from error


@contextmanager
def _one_line(model: str) -> Iterator[None]:
    """Whatever transformers says of a folder or name, as one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"no CLIPModel with tokenizer and preprocessor_config.json can be read from {model}: {said}"
        ) from error
