"""What was written before the rooms were laid anew still loads, by the names that it holds."""

import importlib
import json

import pytest
import torch
from repository import ROOT

from fdistill.core.moved_names import _MOVED, todays_name, todays_names
from fdistill.core.spec import build, public_path, subclasses
from fdistill.data import Digits
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.learned_uncertainty import LearnedUncertainty
from fdistill.models.networks import SmallUNet
from fdistill.models.networks.base import Network
from fdistill.theory.loss_weights import LossWeight
from fdistill.theory.preconditioning import EDM
from fdistill.training import TeacherModule


@pytest.mark.parametrize("old", sorted(_MOVED))
def test_a_module_of_before_is_the_module_of_today(old):
    module = importlib.import_module(f"fdistill.{old}")
    assert module.__name__ == f"fdistill.{_MOVED[old]}"
    assert module.__spec__.name == module.__name__
    assert importlib.import_module(module.__name__) is module


def test_only_names_of_before_are_changed():
    assert todays_name("fdistill.networks.SmallUNet") == "fdistill.models.networks.SmallUNet"
    for same in ("fdistill.data.Digits", "fdistill.networks_of_mine.Net", "torch.optim.AdamW", "networks", "fdistill"):
        assert todays_name(same) == same
    assert todays_names({"a": ["fdistill.paths.CosineVP", 1]}) == {"a": ["fdistill.theory.paths.CosineVP", 1]}


def test_descriptions_of_before_build_what_they_built():
    network = {"class_path": "fdistill.networks.SmallUNet", "init_args": {"resolution": 8, "channels": 1}}
    before = {"class_path": "fdistill.preconditioning.EDM", "init_args": {"sigma_data": 0.5}}
    spec = {"class_path": "fdistill.denoiser.Denoiser", "init_args": {"network": network, "preconditioning": before}}
    denoiser = Denoiser.from_spec(spec)
    assert (type(denoiser.network), type(denoiser.preconditioning)) == (SmallUNet, EDM)
    learned = {"class_path": "fdistill.loss_weights.LearnedUncertainty", "init_args": {"sigma_data": 1.0}}
    assert type(build(LossWeight, learned)) is LearnedUncertainty


def test_a_public_path_is_one_that_python_imports():
    assert public_path(SmallUNet) == "fdistill.models.networks.SmallUNet"
    assert [public_path(found) for found in (Digits, TeacherModule)] == [
        "fdistill.data.Digits",
        "fdistill.training.TeacherModule",
    ]
    for found in subclasses(Network):
        if found.__module__.startswith("fdistill."):
            module, name = public_path(found).rsplit(".", 1)
            assert getattr(importlib.import_module(module), name) is found


def test_a_shipped_folder_of_before_loads_and_samples():
    folder = ROOT / "checkpoints" / "digits-student"
    assert (
        "fdistill.networks.DiffusersUNet" in json.loads((folder / "fdistill.json").read_text())["denoiser"].__repr__()
    )
    model = load_model(folder)
    assert model.sample(model.noise(2, 0), model.labels(2)).shape == (2, 1, 8, 8)


def test_the_file_in_an_exported_folder_of_before_still_imports():
    before, today = (importlib.import_module(f"fdistill.{room}.pipeline") for room in ("export", "io.export"))
    assert before.OneStepPipeline is today.OneStepPipeline
    assert today.OneStepPipeline.__module__ == "fdistill.io.export.pipeline"


def test_a_configuration_of_before_is_read():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Network, "network")
    text = '{"class_path": "fdistill.networks.MLP", "init_args": {"dim": 2, "width": 4, "depth": 2}}'
    made = parser.instantiate_classes(parser.parse_args([f"--network={text}"])).network
    assert made(torch.zeros(3, 2), torch.zeros(3), None).shape == (3, 2)
