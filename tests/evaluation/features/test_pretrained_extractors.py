"""Extractors of three libraries that are not installed here: stand-ins with their signatures take their place.

Signatures and behaviour were read from timm 1.0.31, open_clip_torch 3.3.0 and torch-fidelity 0.4.0.
"""

import os
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fdistill.evaluation.features import InceptionFeatures, OpenClipFeatures, TimmFeatures
from fdistill.evaluation.features.pretrained import read_weights

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


class Backbone(nn.Module):
    """An image model as timm builds it: features, then a head that `reset_classifier(0)` takes away."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 5, 2), nn.Linear(5, 7)

    def reset_classifier(self, num_classes):
        assert num_classes == 0
        self.head = nn.Identity()

    def forward(self, x):
        assert x.shape[2:] == (10, 10)
        return self.head(self.body(x).mean((2, 3)))


def fake_timm():
    library = ModuleType("timm")
    library.data = ModuleType("timm.data")

    def create_model(name, pretrained=False, pretrained_cfg_overlay=None, **kwargs):
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        assert (pretrained, kwargs) == (True, {})
        network = Backbone()
        network.pretrained_cfg = dict(pretrained_cfg_overlay or {"url": "from the net"})
        library.downloaded = pretrained_cfg_overlay is None
        if not library.downloaded:
            network.load_state_dict(pretrained_cfg_overlay["state_dict"])
        return network

    library.create_model = create_model
    library.data.resolve_model_data_config = lambda network: {"input_size": (3, 10, 10), "mean": MEAN, "std": STD}
    return library


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.transformer = Backbone(), nn.Linear(2, 2)


def fake_open_clip():
    library = ModuleType("open_clip")
    library.pretrained = []
    configs = {"tiny": {"text_cfg": {}}, "foreign": {"text_cfg": {"hf_model_name": "roberta-base"}}}
    library.get_model_config = configs.get

    def create_model(model_name, pretrained=None, *, weights_only):
        assert weights_only
        if model_name not in configs:
            raise RuntimeError(f"Model config for {model_name!r} not found in built-ins.")
        network = Clip()
        library.pretrained.append(pretrained)
        if os.path.isfile(pretrained):
            network.load_state_dict(torch.load(pretrained, weights_only=True))
        return network

    library.create_model = create_model
    library.get_model_preprocess_cfg = lambda network: {"size": (10, 10), "mean": MEAN, "std": STD}
    return library


class FakeInception(nn.Module):
    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.scale = nn.Parameter(torch.zeros(()))
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x):
        assert (x.dtype, x.shape[1]) == (torch.uint8, 3)
        return (self.scale * x.float().mean((2, 3)),)


@pytest.fixture
def timm(monkeypatch):
    library = fake_timm()
    monkeypatch.setitem(sys.modules, "timm", library)
    return library


@pytest.fixture
def open_clip(monkeypatch):
    library = fake_open_clip()
    monkeypatch.setitem(sys.modules, "open_clip", library)
    return library


@pytest.fixture
def torch_fidelity(monkeypatch):
    library = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    library.FeatureExtractorInceptionV3, library.URL_INCEPTION_V3 = FakeInception, "https://example.com/w-0123abcd.pth"
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, library.__name__, library)
    return library


@pytest.fixture
def no_library(monkeypatch):
    for name in ("timm", "open_clip", "torch_fidelity"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it raises ImportError


def saved(network, path):
    torch.save(network.state_dict(), path)
    return str(path)


def images(n=6, channels=3):
    return torch.rand(n, channels, 10, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1


def normalised(x):
    return ((x + 1) / 2 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def test_timm_features_are_those_of_the_weights_before_the_head(timm, tmp_path):
    network = Backbone()
    extractor = TimmFeatures("tiny", saved(network, tmp_path / "w.pth"))
    extractor.prepare(images(), None, None, seed=0)
    with torch.no_grad():
        wanted = network.body(normalised(images())).mean((2, 3))
    torch.testing.assert_close(extractor.raw_features(images()), wanted, rtol=1e-5, atol=1e-5)
    assert not timm.downloaded
    assert "state_dict" not in extractor.module.pretrained_cfg
    assert extractor.name.startswith("features of timm's tiny at 10 x 10, scaled")


def test_clip_features_are_those_of_the_image_tower_alone(open_clip, tmp_path):
    network = Clip()
    path = saved(network, tmp_path / "w.pt")
    extractor = OpenClipFeatures("tiny", path)
    with torch.no_grad():
        wanted = network.visual(normalised(images()))
    torch.testing.assert_close(extractor.raw_features(images()), wanted, rtol=1e-5, atol=1e-5)
    assert not any("transformer" in name for name, _ in extractor.named_parameters())


def test_a_file_of_weights_cannot_be_mistaken_for_a_tag_to_download(open_clip, tmp_path, monkeypatch):
    saved(Clip(), tmp_path / "openai")
    monkeypatch.chdir(tmp_path)
    OpenClipFeatures("tiny", "openai")
    assert open_clip.pretrained == [str(tmp_path / "openai")]


def test_inception_sees_eight_bit_pixels_in_three_channels(torch_fidelity, tmp_path):
    weights = tmp_path / "w.pth"
    torch.save({"scale": torch.tensor(2.0)}, weights)
    grey = torch.stack([torch.full((1, 4, 4), value) for value in (-1.0, 0.0, 1.0, 1.7)])
    extractor = InceptionFeatures(str(weights))
    extractor.prepare(grey[:3], None, None, seed=0)
    assert extractor.raw_features(grey).tolist() == [[0.0] * 3, [256.0] * 3, [510.0] * 3, [510.0] * 3]
    with pytest.raises(ValueError, match="channels"):
        extractor.prepare(torch.rand(5, 2), None, None, seed=0)


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (lambda path: TimmFeatures("tiny", path), "timm"),
        (lambda path: OpenClipFeatures("tiny", path), "open-clip-torch"),
        (lambda path: InceptionFeatures(path), "torch-fidelity"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_remedy(make, package, no_library, tmp_path):
    path = saved(nn.Linear(1, 1), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"needs {package}, .* pip install 'fdistill\[features\]'"):
        make(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimmFeatures("tiny", "nowhere.pth"),
        lambda: OpenClipFeatures("tiny", "laion2b_s34b_b79k"),
        lambda: InceptionFeatures("nowhere.pth"),
    ],
)
def test_weights_that_are_not_there_are_not_downloaded(make, timm, open_clip, torch_fidelity):
    with pytest.raises(ValueError, match="download"):
        make()
    assert open_clip.pretrained == []


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: TimmFeatures("tiny"), "got neither"),
        (lambda path: TimmFeatures("tiny", path, download=True), "got both"),
        (lambda path: InceptionFeatures(), "got neither"),
        (
            lambda path: TimmFeatures("hf-hub:timm/tiny", path),
            "model",
        ),
        (lambda path: OpenClipFeatures("hf-hub:org/tiny", path), "downloads"),
        (lambda path: OpenClipFeatures("foreign", path), "base"),
    ],
)
def test_nothing_is_downloaded_unasked(make, match, timm, open_clip, torch_fidelity, tmp_path):
    with pytest.raises(ValueError, match=match):
        make(saved(Backbone(), tmp_path / "w.pth"))


def test_what_is_asked_for_is_downloaded_by_the_library(timm, open_clip, torch_fidelity, monkeypatch):
    TimmFeatures("tiny", download=True)
    assert timm.downloaded
    OpenClipFeatures("foreign", "laion2b", download=True)
    assert open_clip.pretrained == ["laion2b"]
    asked = []
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda url, **how: asked.append((url, how)) or {"scale": torch.ones(())}
    )
    InceptionFeatures(download=True)
    assert asked == [(torch_fidelity.URL_INCEPTION_V3, {"check_hash": True, "weights_only": True})]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: TimmFeatures("tiny", path), "weights"),
        (lambda path: TimmFeatures("huge", path), "model"),
        (lambda path: OpenClipFeatures("tiny", path), "open_clip"),
        (lambda path: OpenClipFeatures("huge", path), "built"),
        (lambda path: InceptionFeatures(path), "fidelity"),
    ],
)
def test_weights_and_names_that_do_not_fit_give_one_line(make, match, timm, open_clip, torch_fidelity, tmp_path):
    with pytest.raises(ValueError, match=match) as caught:
        make(saved(nn.Linear(1, 1), tmp_path / "w.pth"))
    assert "\n" not in str(caught.value)


class Explosive:
    """Runs a command when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_a_file_of_weights_is_never_executed(torch_fidelity, tmp_path):
    torch.save({"scale": Explosive(tmp_path / "trace")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="UnpicklingError"):
        InceptionFeatures(str(tmp_path / "w.pth"))
    assert not (tmp_path / "trace").exists()


def test_weights_are_read_from_safetensors_and_from_inside_a_checkpoint(tmp_path):
    weights = {"a": torch.arange(3.0)}
    save_file(weights, tmp_path / "w.safetensors")
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "w.ckpt")
    for name in ("w.safetensors", "w.ckpt"):
        assert torch.equal(read_weights(tmp_path / name)["a"], weights["a"])


@pytest.mark.parametrize(
    ("name", "content"),
    [("w.pth", b"hello"), ("w.safetensors", b"hello"), ("w.pth", b""), ("list.pth", None), ("plain.pth", None)],
)
def test_files_that_hold_no_weights_are_refused(name, content, tmp_path):
    path = tmp_path / name
    if content is None:
        torch.save([1, 2] if name == "list.pth" else {"epoch": 3}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="network"):
        read_weights(path)
