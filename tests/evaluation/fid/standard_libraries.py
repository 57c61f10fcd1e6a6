"""Stand-ins for torch-fidelity, timm and open_clip with tiny networks, and sources to measure by them."""

import os
from types import ModuleType

import torch
from torch import nn

from fdistill.evaluation.sample_files import FixedSet

FEATURES, CLASSES = 6, 5
MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


class Pooled(nn.Module):
    """Pixels in [0, 1] to features [n, d] of a small convolution."""

    def __init__(self, width=FEATURES):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Conv2d(3, width, 3)

    def forward(self, x):
        return self.body(x).relu().mean((2, 3))


class Inception(nn.Module):
    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.pooled, self.fc = Pooled(), nn.Linear(FEATURES, CLASSES)
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x):
        assert x.dtype == torch.uint8
        return (200 * self.pooled(x.float() / 255),)


class Timm(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.pooled, self.side, self.pretrained_cfg = Pooled(4), side, {}

    def reset_classifier(self, num_classes):
        assert num_classes == 0

    def forward(self, x):
        assert x.shape[2:] == (self.side, self.side)
        return self.pooled(x)


class Clip(nn.Module):
    """Text embeddings point where the number of letters says."""

    def __init__(self):
        super().__init__()
        self.visual = Pooled(2)

    def encode_text(self, tokens):
        return torch.stack([tokens.float(), torch.ones(len(tokens))], dim=1)


def libraries():
    """By the names that are imported."""
    package, fidelity = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    fidelity.FeatureExtractorInceptionV3 = Inception
    timm, open_clip = ModuleType("timm"), ModuleType("open_clip")
    timm.data = ModuleType("timm.data")
    timm.data.resolve_model_data_config = lambda network: {"input_size": (3, 518, 518), "mean": MEAN, "std": STD}

    def vision_transformer(name, pretrained, img_size, pretrained_cfg_overlay):
        network = Timm(img_size)
        network.load_state_dict(pretrained_cfg_overlay["state_dict"])
        return network

    def clip(model_name, pretrained, *, weights_only):
        assert os.path.isfile(pretrained)
        network = Clip()
        network.load_state_dict(torch.load(pretrained, weights_only=weights_only))
        return network

    timm.create_model, open_clip.create_model = vision_transformer, clip
    open_clip.get_model_config = lambda model: {}
    open_clip.get_model_preprocess_cfg = lambda network: {"size": (12, 12), "mean": MEAN, "std": STD}
    open_clip.get_tokenizer = lambda model: lambda texts: torch.tensor([len(text) for text in texts])
    return {"torch_fidelity": package, fidelity.__name__: fidelity, "timm": timm, "open_clip": open_clip}


class FixedImages(FixedSet):
    """A fixed set of 8-bit images [n, C, H, W], two classes in turn."""

    def __init__(self, pixels):
        super().__init__("memory", len(pixels), torch.arange(len(pixels)) % 2, 2)
        self.pixels, self.sample_shape = pixels, tuple(pixels.shape[1:])

    def read(self, numbers):
        return self.pixels[numbers].float() / 127.5 - 1


class Generator:
    """Noise in [-1, 1], brighter for class 1; remembers the labels of every call."""

    evaluations, num_classes, sample_shape, facts = 1, 2, (3, 9, 9), {}

    def __init__(self):
        self.asked = []

    def labels(self, n, seed, wanted=None):
        return wanted

    def draw(self, n, seed, labels=None):
        self.asked.append(labels)
        x = torch.rand(n, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        return x + 0.3 * labels.view(-1, 1, 1, 1)


def pictures(n, seed=0, low=0, high=256):
    """8-bit images [n, 3, 9, 9]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (n, 3, 9, 9), generator=generator, dtype=torch.uint8)
