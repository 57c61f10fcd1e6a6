"""Networks that others trained, from weights on this disk: timm, OpenCLIP and the Inception of FID.

The three libraries need torchvision and are no dependency: `pip install 'fdistill[features]'` brings them. Nothing is
downloaded unless `download: true` says so, and nothing is unpickled but tensors and plain values.
"""

import importlib
import io
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fdistill.data.batches import InMemorySplit
from fdistill.evaluation.features.base import FeatureExtractor
from fdistill.evaluation.features.module import ModuleFeatures


class TimmFeatures(ModuleFeatures):
    """Pooled features of an image model of timm, without its classification head, at the size it was trained for.

    Args:
        model: timm's name for it, e.g. `vit_small_patch14_dinov2.lvd142m` or `resnet50.a1_in1k`.
        weights: file of all its weights, head included, as timm publishes them: .safetensors, .bin or .pth.
        download: fetch timm's own weights for this name instead.
        resolution: height and width to run a vision transformer at, where not those it was trained for; timm resamples
            its position embedding.

    Raises:
        ValueError: if timm is not installed or does not know the model, or the weights are missing or do not fit.
    """

    def __init__(
        self, model: str, weights: str | None = None, download: bool = False, resolution: int | None = None
    ) -> None:
        _require_one("TimmFeatures", weights, download)
        _require_local("TimmFeatures", model, download)
        timm = _library("timm", "timm")
        source: dict[str, Any] = {} if resolution is None else {"img_size": resolution}
        if weights is not None:
            source["pretrained_cfg_overlay"] = {"state_dict": read_weights(weights)}
        with _one_line("timm", model, weights):
            network = timm.create_model(model, pretrained=True, **source)
            network.reset_classifier(0)  # only now: without a head timm would load any file, however little of it fits
        network.pretrained_cfg.pop("state_dict", None)  # a second copy of all weights
        made_for = timm.data.resolve_model_data_config(network)
        super().__init__(network, resolution or made_for["input_size"][1], made_for["mean"], made_for["std"])
        self._model = model

    @property
    def what(self) -> str:
        return f"features of timm's {self._model} at {self.resolution} x {self.resolution}"


class OpenClipFeatures(ModuleFeatures):
    """Image embeddings of a CLIP model, not normalised; the text tower is dropped when it has read the prompts.

    Args:
        model: OpenCLIP's name for the architecture, e.g. `ViT-B-32`.
        weights: file of the whole model: .safetensors, .bin or .pt; with download also OpenCLIP's tag for weights.
        download: let OpenCLIP fetch what `weights` names, and whatever else the model asks for.
        prompts: texts to compare images with.

    Attributes:
        prompt_embeddings: of the prompts [p, d], not normalised.

    Raises:
        ValueError: if open_clip is not installed or does not know the model, or the weights are missing or do not fit.
    """

    prompt_embeddings: Tensor

    def __init__(self, model: str, weights: str, download: bool = False, prompts: Sequence[str] = ()) -> None:
        _require_local("OpenClipFeatures", model, download)
        open_clip = _library("open_clip", "open-clip-torch")
        if not download:
            # absolute, so that it cannot be taken for a tag, which open_clip would download
            weights = str(_existing(weights).resolve())
            text = (open_clip.get_model_config(model) or {}).get("text_cfg", {})
            if "hf_model_name" in text:
                raise ValueError(
                    f"OpenClipFeatures downloads nothing unasked: {model} fetches its text tower "
                    f"{text['hf_model_name']}; choose another model, or set download: true"
                )
        with _one_line("open_clip", model, weights):
            network = open_clip.create_model(model, pretrained=weights, weights_only=True)
        made_for = open_clip.get_model_preprocess_cfg(network)
        size = made_for["size"]
        resolution = size if isinstance(size, int) else size[0]
        super().__init__(network.visual, resolution, tuple(made_for["mean"]), tuple(made_for["std"]))
        self._model = model
        embedded = torch.zeros(0)
        if prompts:
            with torch.no_grad():
                embedded = network.eval().encode_text(open_clip.get_tokenizer(model)(list(prompts))).float()
        self.register_buffer("prompt_embeddings", embedded, persistent=False)

    @property
    def what(self) -> str:
        return f"image embeddings of OpenCLIP's {self._model} at {self.resolution} x {self.resolution}"


class InceptionFeatures(FeatureExtractor):
    """The 2048 pooled features of the Inception network of FID (arXiv 1706.08500), as torch-fidelity computes them.

    Samples are rounded to 8-bit pixels and resized as TensorFlow 1 did; grey images are repeated in three channels.

    Args:
        weights: torch-fidelity's file `weights-inception-2015-12-05-6726825d.pth`.
        download: fetch that file instead; its hash is checked.

    Raises:
        ValueError: if torch-fidelity is not installed, or the weights are missing or do not fit; and by `prepare` for
            samples that are no grey or colour images.
    """

    batch_size = 64

    def __init__(self, weights: str | None = None, download: bool = False) -> None:
        super().__init__()
        _require_one("InceptionFeatures", weights, download)
        library = _library("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
        if weights is None:
            state = torch.hub.load_state_dict_from_url(library.URL_INCEPTION_V3, check_hash=True, weights_only=True)
        else:
            state = read_weights(weights)
        ours = io.BytesIO()  # torch-fidelity unpickles whatever it is given: it gets what was read safely
        torch.save(state, ours)
        ours.seek(0)
        with _one_line("torch-fidelity", "InceptionV3", weights):
            self.network = library.FeatureExtractorInceptionV3(
                "inception", ["2048"], feature_extractor_weights_path=ours
            )

    @property
    def what(self) -> str:
        return "2048 pooled features of the Inception network of FID"

    def fit(self, x: InMemorySplit, labels: Tensor | None, num_classes: int | None, seed: int) -> None:
        if len(x.sample_shape) != 3 or x.sample_shape[0] not in (1, 3):
            raise ValueError(f"InceptionFeatures reads images of 1 or 3 channels: got samples {list(x.sample_shape)}")

    def raw_features(self, x: Tensor) -> Tensor:
        pixels = ((x + 1) * 127.5).round().clamp(0, 255).byte()
        return self.network(pixels.expand(-1, 3, -1, -1))[0].float()

    def class_logits(self, features: Tensor) -> Tensor:
        """Logits [n, 1008] of raw features [n, 2048], without the bias: those of the Inception score."""
        return features @ self.network.fc.weight.T


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a file of torch.save, on the CPU; nothing in it is executed.

    Raises:
        ValueError: if there is no such file, or it holds anything but a state dictionary.
    """
    path = _existing(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} holds a network's weights and nothing that is executed: expected a .safetensors file or a saved "
            f"state_dict, got {type(error).__name__}; save its state_dict again"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds a network's weights: expected a state_dict of tensors; save it again")
    return found


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of weights at {path}: fetch it yourself, or set download: true")
    return path


def _library(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"this extractor needs {package}, which does not import here ({error}): pip install 'fdistill[features]'"
        ) from error


def _require_one(extractor: str, weights: str | None, download: bool) -> None:
    if (weights is None) != download:
        got = "neither" if weights is None else "both"
        raise ValueError(f"{extractor} takes weights: FILE or download: true, one of them: got {got}")


def _require_local(extractor: str, model: str, download: bool) -> None:
    """A prefix like hf-hub: makes timm and open_clip download the architecture itself."""
    if ":" in model and not download:
        raise ValueError(f"{extractor} downloads nothing unasked: got model {model!r}; set download: true, or name one")


@contextmanager
def _one_line(library: str, model: str, weights: str | None) -> Iterator[None]:
    """Errors of building a network as one line; those of load_state_dict name every tensor on a line of its own."""
    try:
        yield
    except (RuntimeError, OSError, KeyError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{library} does not build {model} with weights {weights}: {reason}") from error
