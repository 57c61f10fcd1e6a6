"""A description in plain values rebuilds the object, and builds nothing else."""

import copy
import inspect
import json
import sys

import pytest
import torch
from stock_models import SMALL_DIT, SMALL_UNET

from fdistill.core.spec import Described, public_path
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import (
    MLP,
    DiffusersUNet,
    EDM2UNet,
    GaussianMixture,
    Network,
    SmallUNet,
    SongUNet,
    StockDiT,
    StockUNet,
    TwoExperts,
)
from fdistill.sampling import Restart, Sampler
from fdistill.sampling.grids import GivenGrid, PathGrid, SamplingGrid
from fdistill.theory.divergences import FDivergence, SkewedJensenShannon
from fdistill.theory.loss_weights import LossWeight
from fdistill.theory.paths import KineticOptimal, Path, VPCosine, VPLinear
from fdistill.theory.preconditioning import (
    EDM,
    EpsPrediction,
    Preconditioning,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
)

SMALL = {"resolution": 4, "channels": 1, "num_classes": 2, "model_channels": 8, "blocks_per_level": 1}
ARGUMENTS = {
    GaussianMixture: {"means": ((-1.0, 0.0), (1.0, 0.5)), "stds": (0.2, 0.3), "weights": (1.0, 3.0)},
    MLP: {"dim": 3, "width": 8, "depth": 2, "num_classes": 2, "initial_output": (0.1, 0.2, 0.3)},
    SmallUNet: {"resolution": 4, "widths": (4, 8), "num_classes": 2},
    DiffusersUNet: {"resolution": 4, "widths": (8, 8), "attention_levels": (1,)},
    SongUNet: SMALL | {"channel_mult": (1, 1), "attention_resolutions": (2,)},
    EDM2UNet: SMALL | {"channel_mult": (1, 1), "attention_resolutions": (2,), "channels_per_head": 4},
    StockUNet: {"config": SMALL_UNET | {"num_class_embeds": 2}},
    StockDiT: {"config": SMALL_DIT},
    EpsPrediction: {"path": VPCosine(0.01), "time_scale": 1000.0},
    VPrediction: {"path": VPLinear(0.2, 10.0)},
    X0Prediction: {"path": VPLinear()},
    EDM: {"sigma_data": 0.25},
    VelocityPrediction: {"time_scale": 7.0, "path": VPCosine()},
    PathGrid: {"path": VPLinear(), "num_steps": 4, "sigma_max": 50.0},
    GivenGrid: {"levels": (2.0, 0.5, 0.0)},
    Restart: {"sigma_low": 0.1, "sigma_high": 0.5},
    KineticOptimal: {"angles": (0.1, 0.9), "shares": (0.2, 0.5), "sigma_data": 0.6},
}


def concrete_subclasses(cls):
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    ours = [sub for sub in below if sub.__module__.startswith("fdistill") and not inspect.isabstract(sub)]
    # whose conditions are texts: tests/io/importing and tests/models/networks have theirs
    return [sub for sub in ours if sub.__name__ not in ("TextToImageNetwork", "WordUNet")]


def example(cls):
    if cls is TwoExperts:
        return TwoExperts(example(MLP), example(MLP), 0.1)
    return cls(**ARGUMENTS.get(cls, {}))


def through_json(spec):
    return json.loads(json.dumps(spec))


@pytest.mark.parametrize(
    ("network", "preconditioning"),
    [(cls, EDM) for cls in concrete_subclasses(Network)]
    + [(MLP, cls) for cls in concrete_subclasses(Preconditioning) if cls is not EDM],
    ids=lambda cls: cls.__name__,
)
def test_every_denoiser_is_rebuilt_from_its_description(network, preconditioning):
    denoiser = Denoiser(example(network), example(preconditioning)).eval()
    spec = through_json(denoiser.spec())
    again = Denoiser.from_spec(spec).eval()
    again.load_state_dict(denoiser.state_dict())
    assert again.spec() == spec
    assert type(again.network) is network
    x, sigma = torch.randn(3, *denoiser.sample_shape), torch.tensor([0.1, 1.0, 10.0])
    labels = torch.arange(3) % 2 if denoiser.num_classes else None
    assert torch.equal(again(x, sigma, labels), denoiser(x, sigma, labels))


@pytest.mark.parametrize("base", [FDivergence, Path, LossWeight, SamplingGrid, Sampler], ids=lambda cls: cls.__name__)
def test_every_part_is_rebuilt_from_its_description(base):
    for cls in concrete_subclasses(base):
        spec = through_json(example(cls).spec())
        assert type(base.from_spec(spec)) is cls
        assert base.from_spec(spec).spec() == spec


def test_description_tells_defaults_and_positional_arguments_by_name():
    assert VPLinear(0.3).spec() == {
        "class_path": "fdistill.theory.paths.VPLinear",
        "init_args": {"beta_min": 0.3, "beta_max": 20.0},
    }
    assert EDM().spec()["init_args"] == {"sigma_data": 0.5}


def test_description_nests():
    spec = VPrediction(VPCosine(0.01)).spec()
    assert spec["init_args"]["path"] == {"class_path": "fdistill.theory.paths.VPCosine", "init_args": {"offset": 0.01}}


def test_a_subclass_is_described_by_its_own_arguments():
    assert VelocityPrediction(5.0).spec()["init_args"] == {"time_scale": 5.0, "path": None}


def test_a_class_path_does_not_tell_the_file_inside_a_room():
    assert public_path(MLP) == "fdistill.models.networks.MLP"
    assert public_path(VPLinear) == "fdistill.theory.paths.VPLinear"
    assert public_path(json.JSONDecoder) == "json.decoder.JSONDecoder"


def test_a_copy_has_the_same_description_and_its_own_weights():
    denoiser = Denoiser(example(MLP), EDM(0.4))
    copied = copy.deepcopy(denoiser)
    assert copied.spec() == denoiser.spec()
    assert Denoiser.from_spec(copied.spec()).spec() == denoiser.spec()
    with torch.no_grad():
        copied.network.output.bias.add_(1)
    assert not torch.equal(copied.network.output.bias, denoiser.network.output.bias)


def test_description_keeps_the_values_of_construction_when_the_caller_changes_his_list():
    widths = [8, 8]
    network = SmallUNet(resolution=4, widths=widths)
    widths.append(16)
    assert network.spec()["init_args"]["widths"] == [8, 8]


def test_an_unknown_class_is_refused_and_its_module_not_imported(tmp_path, monkeypatch):
    (tmp_path / "module_with_a_trap.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="module_with_a_trap"):
        Network.from_spec({"class_path": "module_with_a_trap.Net", "init_args": {}})
    assert "module_with_a_trap" not in sys.modules


@pytest.mark.parametrize(
    "class_path", ["os.system", "builtins.eval", "torch.nn.Linear", "fdistill.theory.paths.VPLinear", ""]
)
def test_only_classes_of_the_asked_kind_are_built(class_path):
    with pytest.raises(ValueError, match="Network"):
        Network.from_spec({"class_path": class_path, "init_args": {}})


@pytest.mark.parametrize("base", [Path, FDivergence, Network], ids=lambda cls: cls.__name__)
def test_an_abstract_class_is_not_built(base):
    with pytest.raises(ValueError, match="is no"):
        base.from_spec({"class_path": public_path(base), "init_args": {}})


@pytest.mark.parametrize(
    "spec",
    [
        *(None, "VPLinear", {}, [], {"class_path": "x"}, {"class_path": "x", "init_args": {}, "more": 1}),
        *({"class_path": path, "init_args": {}} for path in (None, 3, [], {})),
        *(
            {"class_path": "fdistill.theory.paths.VPLinear", "init_args": arguments}
            for arguments in (None, [1.0, 2.0], "x")
        ),
    ],
    ids=str,
)
def test_a_description_of_another_form_is_refused(spec):
    with pytest.raises(ValueError, match="init_args"):
        Path.from_spec(spec)


@pytest.mark.parametrize(
    "init_args",
    [{"beta": 1.0}, {"self": 1}, {"beta_min": "a"}, {"beta_min": 5.0, "beta_max": 1.0}, {"beta_min": {}}],
    ids=str,
)
def test_arguments_that_the_class_does_not_take_are_refused(init_args):
    with pytest.raises(ValueError, match="VPLinear"):
        Path.from_spec({"class_path": "fdistill.theory.paths.VPLinear", "init_args": init_args})


def test_a_nested_unknown_class_is_refused():
    spec = {
        "class_path": "fdistill.theory.preconditioning.VPrediction",
        "init_args": {"path": {"class_path": "a.B", "init_args": {}}},
    }
    with pytest.raises(ValueError, match=r"a\.B"):
        Preconditioning.from_spec(spec)


def test_values_that_are_not_plain_cannot_be_described():
    class Holder(Described):
        def __init__(self, value):
            self.value = value

    with pytest.raises(TypeError, match="plain"):
        Holder(torch.ones(2)).spec()
    assert Holder({"a": (1, None, True)}).spec()["init_args"] == {"value": {"a": [1, None, True]}}


def test_parameters_outside_their_range_are_refused_on_the_way_back_too():
    spec = SkewedJensenShannon(0.5).spec()
    spec["init_args"]["skew"] = 2.0
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        FDivergence.from_spec(spec)


@pytest.mark.parametrize("path", [{"class_path": 3, "init_args": {}}, {"class_path": "x", "init_args": None}], ids=str)
def test_a_nested_description_of_another_form_is_refused(path):
    with pytest.raises(ValueError, match="init_args"):
        Preconditioning.from_spec(
            {"class_path": "fdistill.theory.preconditioning.EpsPrediction", "init_args": {"path": path}}
        )


class Holder(Described):
    """An object that is told others in every kind of container."""

    def __init__(self, items, named, nested=()):
        self.items, self.named, self.nested = items, named, nested


def test_objects_in_lists_and_dicts_are_rebuilt_as_objects():
    held = Holder([VPLinear(0.2, 9.0), 3, None], {"a": EDM(0.7), "b": "text"}, ({"deep": [Holder([EDM()], {})]},))
    again = Described.from_spec(json.loads(json.dumps(held.spec())))
    assert again.spec() == held.spec()
    assert (again.items[0].beta_max, *again.items[1:]) == (9.0, 3, None)
    assert (again.named["a"].sigma_data, again.named["b"]) == (0.7, "text")
    assert isinstance(again.nested[0]["deep"][0].items[0], EDM)


def test_a_container_cannot_name_what_is_not_imported():
    spec = Holder([EDM()], {}).spec()
    spec["init_args"]["items"][0]["class_path"] = "os.system"
    with pytest.raises(ValueError, match=r"os\.system"):
        Described.from_spec(spec)
