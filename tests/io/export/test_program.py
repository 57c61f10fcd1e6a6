"""generator.pt2 and generator.onnx compute what the model samples, for batches of any size."""

import dataclasses
import importlib.util
from typing import NamedTuple

import pytest
import torch
from cli_runs import fdistill, one_error_line, succeeds
from tiny_runs import mlp
from torch.testing import assert_close

from fdistill.io.export.program import FILES, Generator, write_program
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import DiffusersUNet, EDM2UNet, SmallUNet, SongUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM

pytestmark = pytest.mark.system  # seconds, too many for make check

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
ATTENDS = {"resolution": 8, "channels": 1, "blocks_per_level": 1, "attention_resolutions": [4], "num_classes": 3}
NETWORKS = {
    "SmallUNet": lambda: SmallUNet(8, 1, (8, 8), num_classes=3),
    "SongUNet": lambda: SongUNet(model_channels=8, channel_mult=[1, 1], **ATTENDS),
    "EDM2UNet": lambda: EDM2UNet(model_channels=64, channel_mult=[1, 1], **ATTENDS),
    "DiffusersUNet": lambda: DiffusersUNet(8, 1, (8, 8), num_classes=3),
    "MLP": lambda: mlp().network,
}


def student(network, sigmas=5.0):
    """With weights that all say something, also those that a network starts at zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in (made := NETWORKS[network]()).parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return GenerativeModel.student(Denoiser(made, EDM(0.5)), sigmas)


class Made(NamedTuple):
    """Arguments of an artefact, and what the model itself makes of them."""

    arguments: tuple
    samples: torch.Tensor


def made(model, n):
    latents, labels = model.noise(n, n), model.labels(n)
    return Made((latents,) if labels is None else (latents, labels), model.sample(latents, labels))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sigmas", [5.0, [5.0, 1.0, 0.5]])
def test_the_generator_is_the_model_s_own_map(network, sigmas):
    model = dataclasses.replace(student(network, sigmas), temperature=1.1)
    with torch.no_grad():
        assert torch.equal(Generator(model)(*made(model, 5).arguments), made(model, 5).samples)


def test_torch_export_is_the_model_for_every_batch_size(tmp_path):
    model = student("MLP", [5.0, 1.0, 0.5])
    program = torch.export.load(write_program(model, "torch_export", tmp_path)).module()
    for n in (1, 2, 70):
        assert_close(program(*made(model, n).arguments), made(model, n).samples, rtol=0, atol=1e-4)


@pytest.mark.skipif(not HAS_ONNX, reason="the onnx extra is not installed")
@pytest.mark.parametrize(("network", "sigmas"), [("DiffusersUNet", 5.0), ("SongUNet", 5.0), ("MLP", [5.0, 1.0, 0.5])])
def test_onnx_is_the_model_for_every_batch_size(network, sigmas, tmp_path):
    import onnxruntime

    model = student(network, sigmas)
    session = onnxruntime.InferenceSession(str(write_program(model, "onnx", tmp_path)))
    names = [given.name for given in session.get_inputs()]
    assert names == ["latents", "labels"][: 1 + (model.num_classes > 0)]
    for n in (1, 2, 70):
        arguments = {name: value.numpy() for name, value in zip(names, made(model, n).arguments, strict=True)}
        (samples,) = session.run(["samples"], arguments)
        assert_close(torch.from_numpy(samples), made(model, n).samples, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_command_writes_the_program_into_the_folder(student_checkpoint, tmp_path):
    out = succeeds("export", student_checkpoint, tmp_path / "folder", "--torch_export")
    path = tmp_path / "folder" / FILES["torch_export"]
    assert out.splitlines()[-1] == f"wrote {path}: its map from latents and labels to samples"
    model = load_model(tmp_path / "folder")
    program = torch.export.load(path).module()
    for n in (1, 2, 70):
        found, expected = program(*made(model, n).arguments), made(load_model(student_checkpoint), n).samples
        assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("option", ["--onnx", "--torch_export"])
def test_a_teacher_has_no_program(option, teacher_checkpoint, tmp_path):
    outcome = fdistill("export", teacher_checkpoint, tmp_path / "folder", option)
    assert "writes the steps of a student: got a teacher" in one_error_line(outcome)
    assert not (tmp_path / "folder").exists()


def test_missing_packages_are_named_with_their_remedy(student_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcome = fdistill("export", student_checkpoint, tmp_path / "folder", "--onnx")
    assert one_error_line(outcome) == (
        "an ONNX graph needs onnx and onnxscript, not found here: pip install 'fdistill[onnx]'"
    )
    assert not (tmp_path / "folder").exists()
