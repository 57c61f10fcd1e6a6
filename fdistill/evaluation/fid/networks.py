"""The networks of the standard metrics, from the words of a user: a file, MODEL=FILE, or hub:NAME to download.

Each raises ValueError in one line where its library is missing, or the weights are missing or do not fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdistill.core.fingerprints import fingerprint
from fdistill.data import InMemorySplit
from fdistill.evaluation.features import (
    FeatureExtractor,
    InceptionFeatures,
    ModuleFeatures,
    OpenClipFeatures,
    TimmFeatures,
)

HUB = "hub:"
INCEPTION = "inception"  # the only one: torch-fidelity's translation of TensorFlow's
DINOV2 = "vit_large_patch14_dinov2.lvd142m"  # timm's name for the network of arXiv 2306.04675
DINOV2_SIDE = 224  # its images there; timm would run it at 518
TEMPLATE = "a photo of a {}"


@dataclass
class StandardNetwork:
    """A network with fixed weights, and what is done to pictures on their way into it.

    Attributes:
        name: inception, dinov2 or clip; of its entry in the report and of its statistics files.
        extractor: gives its raw features; never shifted or scaled.
        weights: file name, or hub:NAME.
        preprocessing: a sentence.
        fingerprint: of the weights as they were loaded, whatever file they lay in.
    """

    name: str
    extractor: FeatureExtractor
    weights: str
    preprocessing: str
    fingerprint: str

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Raw features [n, d] of 8-bit pixels [n, C, H, W], float32 on the CPU."""
        self.extractor.eval()
        pixels = pixels.contiguous()  # convolutions round otherwise where channels come last
        images = pixels.to(self.extractor.device).float() / 127.5 - 1
        return torch.cat([self.extractor.raw_features(part) for part in images.split(self.extractor.batch_size)]).cpu()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Class logits [n, 1008] of Inception's features."""
        inception: Any = self.extractor
        return inception.class_logits(features.to(inception.device)).cpu()

    def described(self) -> dict[str, Any]:
        """What the report says of it."""
        return {
            "features": f"{self.extractor.what}, unscaled",
            "weights": self.weights,
            "fingerprint": self.fingerprint,
            "preprocessing": self.preprocessing,
        }

    def check(self, sample_shape: Sequence[int]) -> None:
        """Raise ValueError where the network does not read samples of this shape."""
        one = InMemorySplit(torch.zeros(1, *sample_shape), torch.zeros(1, dtype=torch.long))
        self.extractor.fit(one, None, None, 0)


def inception(given: str, device: torch.device) -> StandardNetwork:
    """The Inception network of FID, KID and Inception score.

    Args:
        given: torch-fidelity's file of weights, or hub:inception.
        device: where it reads.
    """
    if given.startswith(HUB) and given != HUB + INCEPTION:
        raise ValueError(f"fid is a file of weights or {HUB}{INCEPTION}: got {given}; name one of them")
    hub = given.startswith(HUB)
    extractor = InceptionFeatures(download=True) if hub else InceptionFeatures(_file("fid", given, HUB + INCEPTION))
    resized = "resized to 299 x 299 by the bilinear filter of TensorFlow 1, then (pixel - 128) / 128"
    return _network("inception", extractor, given if hub else Path(given).name, resized, device)


def dinov2(given: str, device: torch.device) -> StandardNetwork:
    """A DINOv2 network, for the Frechet distance of its class token (arXiv 2306.04675).

    Args:
        given: timm's file of the weights of ViT-L/14; MODEL=FILE for another model of timm; hub:MODEL.
        device: where it reads.
    """
    if given.startswith(HUB):
        extractor = TimmFeatures(given.removeprefix(HUB), download=True, resolution=DINOV2_SIDE)
        return _network("dinov2", extractor, given, _as_trained(extractor), device)
    model, weights = given.split("=", 1) if "=" in given else (DINOV2, given)
    extractor = TimmFeatures(model, _file("dinov2", weights, HUB + model), resolution=DINOV2_SIDE)
    return _network("dinov2", extractor, Path(weights).name, _as_trained(extractor), device)


def clip(given: str, class_names: Sequence[str], device: torch.device) -> StandardNetwork:
    """A CLIP network that compares images with the names of their classes.

    Args:
        given: MODEL=FILE with a model of OpenCLIP; hub:MODEL/TAG with a tag of its weights.
        class_names: in the order of the labels.
        device: where it reads.

    Raises:
        ValueError: in one line, where there are no names.
    """
    if not class_names:
        raise ValueError(
            "a CLIP score compares images with prompts, which are made of class names: the data has none; leave --clip "
            "out, or give data with named classes (ImageFolder)"
        )
    prompts = [TEMPLATE.format(name.replace("_", " ")) for name in class_names]
    hub = given.startswith(HUB)
    model, separator, weights = given.removeprefix(HUB).partition("/" if hub else "=")
    if not separator:
        raise ValueError(f"clip is MODEL=FILE or {HUB}MODEL/TAG, as of OpenCLIP: got {given}; name both")
    if not hub:
        _file("clip", weights, f"{HUB}MODEL/TAG")
    extractor = OpenClipFeatures(model, weights, download=hub, prompts=prompts)
    return _network("clip", extractor, given if hub else Path(weights).name, _as_trained(extractor), device)


def _network(
    name: str, extractor: FeatureExtractor, weights: str, preprocessing: str, device: torch.device
) -> StandardNetwork:
    kept = dict(extractor.named_parameters()) | dict(extractor.named_buffers())
    of_weights = fingerprint(name, {key: value for key, value in kept.items() if key != "prompt_embeddings"})
    return StandardNetwork(name, extractor.to(device), weights, preprocessing, of_weights)


def _as_trained(extractor: ModuleFeatures) -> str:
    mean, std = ([round(value, 4) for value in side.tolist()] for side in (extractor.input_mean, extractor.input_std))
    side = extractor.resolution
    return f"resized to {side} x {side} by torch's antialiased bicubic filter, mean {mean} and std {std} of [0, 1]"


def _file(option: str, path: str, hub: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"there is no file of weights at {path} for --{option}: check the path, or {hub} downloads it")
    return path
