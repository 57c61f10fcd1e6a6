"""Networks of EDM and EDM2, read from pickles, compute what the original code computes."""

import math

import numpy as np
import pytest
import torch
from edm_stand_in import Persistent, cases, network_of_case, script, weights_of_case, write

from fdistill.core.weight_files import CheckpointError
from fdistill.io.importing.edm_adm import adm_weights
from fdistill.io.importing.edm_pickle import read_edm
from fdistill.models.denoiser import Denoiser

pytestmark = pytest.mark.system  # seconds, too many for make check

CASES = cases()


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    def written(name, half=False, encoder=None, **arguments):
        case = CASES[name]
        network = network_of_case(case, weights_of_case(case, half), **arguments)
        content = {"ema": network, "loss_fn": None, "encoder": encoder}
        return write(monkeypatch, tmp_path / "network-snapshot-000001.pkl", content)

    return written


@pytest.mark.parametrize("name", CASES)
def test_an_imported_network_denoises_as_the_original_code_does(snapshot, name):
    model, tool = read_edm(snapshot(name)), script()
    x, sigmas, labels = tool.inputs()
    with torch.no_grad():
        denoised = model.denoiser(x, sigmas, labels if model.num_classes else None)
    expected = torch.tensor(CASES[name]["denoised"])
    torch.testing.assert_close(denoised.flatten()[:: tool.EVERY], expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_an_imported_teacher_is_rebuilt_from_its_description(snapshot, name):
    model = read_edm(snapshot(name))
    copy = Denoiser.from_spec(model.denoiser.spec())
    copy.load_state_dict(model.denoiser.state_dict())
    x, sigmas, labels = script().inputs()
    with torch.no_grad():
        taps = model.denoiser.encode(x, sigmas, labels).features
        assert torch.equal(copy.eval()(x, sigmas, labels), model.denoiser(x, sigmas, labels))
    assert [tap.shape[1] for tap in taps] == list(model.denoiser.network.feature_channels)
    assert [tap.shape[2] for tap in taps] == [8, 4]


def test_a_teacher_samples_between_the_noise_levels_of_its_training(snapshot):
    ve, vp, edm = (read_edm(snapshot(name)) for name in ("ncsnpp_ve", "ddpmpp_classes_vp", "ddpmpp"))
    assert [model.sigmas[0].item() for model in (ve, vp, edm)] == pytest.approx([80.0, 80.0, 80.0])
    assert [model.sigmas[-2].item() for model in (ve, vp, edm)] == pytest.approx([0.02, 0.002, 0.002])
    assert ve.evaluations == 35
    assert edm.facts["sigma_data"] == 0.5


def test_half_precision_becomes_single_and_no_class_is_known_only_where_it_was_trained(snapshot):
    exact, rounded = read_edm(snapshot("classes")), read_edm(snapshot("classes", half=True))
    weights = rounded.denoiser.state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    for name, value in exact.denoiser.state_dict().items():
        assert torch.equal(weights[name], value.half().float())
    assert not exact.denoiser.network.knows_no_class  # EDM2 guides by a second network
    assert read_edm(snapshot("ncsnpp_classes")).denoiser.network.knows_no_class
    assert not read_edm(snapshot("ncsnpp_classes", label_dropout=0)).denoiser.network.knows_no_class
    adm = read_edm(snapshot("adm_classes", label_dropout=0)).denoiser.network
    assert not adm.knows_no_class
    assert adm.num_classes == 3
    assert adm.unet.class_embedding.weight[3].eq(0).all()


def test_latents_say_how_to_decode_them(snapshot):
    scale, bias = np.float32([0.1, 0.2, 0.3]), np.float32([1, 2, 3])
    vae = Persistent("StabilityVAEEncoder", {"vae_name": "some/vae", "scale": scale, "bias": bias, "_vae": None})
    facts = read_edm(snapshot("images", encoder=vae)).facts
    assert facts["vae"] == "some/vae"
    assert facts["latents_bias"] == [1, 2, 3]
    assert facts["latents_scale"] == pytest.approx([0.1, 0.2, 0.3])
    assert "vae" not in read_edm(snapshot("images", encoder=Persistent("StandardRGBEncoder", {}))).facts
    with pytest.raises(CheckpointError, match="StabilityVAEEncoder"):
        read_edm(snapshot("images", encoder=Persistent("Other", {})))


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": np.ones(2, np.float32)},
        {"scale": np.ones((1, 3), np.float32)},
        {"scale": np.float32([1, np.nan, 1])},
        {"scale": np.float32([1, 0, 1])},
        {"bias": np.float32([1, np.inf, 1])},
    ],
)
def test_encoders_of_no_latents_are_refused(snapshot, changes):
    ones = np.ones(3, np.float32)
    encoder = Persistent("StabilityVAEEncoder", {"vae_name": "a/vae", "scale": ones, "bias": ones} | changes)
    with pytest.raises(CheckpointError, match="scale"):
        read_edm(snapshot("images", encoder=encoder))


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("ddpmpp", {"encoder_type": "skip"}, "SongUNet"),
        ("ddpmpp", {"novelty": 1}, "novelty"),
        ("ddpmpp", {"a\n\x1b[2J": 1}, "known"),
        ("ddpmpp", {"out_channels": 6}, "output"),
        ("ddpmpp", {"model_channels": 8192}, "architecture"),
        ("ddpmpp", {"model_channels": "8"}, "SongUNet"),
        ("ddpmpp", {"channel_mult": [[1, 2], [1]]}, "SongUNet"),
        ("ddpmpp", {"channel_mult": []}, "SongUNet"),
        ("ddpmpp", {"num_blocks": math.nan}, "SongUNet"),
        ("ddpmpp", {"num_blocks": 2}, "tensors"),
        ("ddpmpp", {"num_blocks": torch.zeros(1)}, "plain"),
        ("images", {"res_balance": 0.5}, "res_balance"),
        ("images", {"channels_per_head": 24}, "channels_per_head"),
        ("adm_classes", {"model_channels": 64}, "widths"),
    ],
)
def test_what_no_network_here_computes_is_refused_in_one_line(snapshot, name, arguments, says):
    with pytest.raises(CheckpointError, match=says) as raised:
        read_edm(snapshot(name, **arguments))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("name", "state", "says"),
    [
        *(("ddpmpp", {"sigma_data": value}, "sigma_data") for value in (math.nan, 0, "0.5", torch.zeros(2))),
        ("ddpmpp", {"sigma_max": math.nan}, "sigma_max"),
        ("ddpmpp_classes_vp", {"M": 1}, "M"),
        ("ddpmpp_classes_vp", {"beta_d": math.inf}, "beta_d"),
    ],
)
def test_noise_levels_of_no_teacher_are_refused(tmp_path, monkeypatch, name, state, says):
    network = network_of_case(CASES[name], weights_of_case(CASES[name]))
    network.state |= state
    with pytest.raises(CheckpointError, match=says):
        read_edm(write(monkeypatch, tmp_path / "a.pkl", {"ema": network}))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"steps": torch.zeros(3, dtype=torch.int64)}, "int64"),
        ({"a": torch.full((2,), math.nan)}, "finite"),
        ({"a\x1b[31m": torch.zeros(1)}, "architecture"),
    ],
)
def test_weights_of_no_network_are_refused(tmp_path, monkeypatch, more, says):
    network = network_of_case(CASES["ddpmpp"], weights_of_case(CASES["ddpmpp"]))
    network.state["_modules"][CASES["ddpmpp"]["inner"]].state["_buffers"] |= more
    with pytest.raises(CheckpointError, match=says) as raised:
        read_edm(write(monkeypatch, tmp_path / "a.pkl", {"ema": network}))
    assert str(raised.value).isprintable()


def test_two_tensors_for_one_place_of_adm():
    config = {"block_out_channels": [128, 128], "sample_size": 8}
    weights = {name: torch.zeros(1) for name in ("enc.8x8_in0.conv0.bias", "dec.4x4_in0.conv0.bias")}
    with pytest.raises(ValueError, match="bias"):
        adm_weights(weights, config)


def test_other_preconditionings_are_refused(tmp_path, monkeypatch):
    case = {**CASES["ddpmpp"], "class": "iDDPMPrecond"}
    path = write(monkeypatch, tmp_path / "a.pkl", {"ema": network_of_case(case, weights_of_case(case))})
    with pytest.raises(CheckpointError, match="iDDPMPrecond"):
        read_edm(path)
