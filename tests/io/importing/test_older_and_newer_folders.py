"""Folders that other versions of diffusers wrote: all files in the root, an average's own folder, keys of tomorrow."""

import json
import shutil

import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, DiTPipeline, UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from stock_models import ddim, dit, save, unet, vae

from fdistill.core.weight_files import CheckpointError
from fdistill.io.importing import Options, import_model
from fdistill.models.networks import SmallUNet


@pytest.fixture
def pipeline(tmp_path):
    return save(DDPMPipeline(unet(), DDPMScheduler()), tmp_path / "pipeline")


def same(model, other):
    ours, theirs = model.denoiser.state_dict(), other.denoiser.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_all_files_in_the_root_are_those_in_sub_folders(pipeline, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for file in [*(pipeline / "unet").iterdir(), pipeline / "model_index.json"]:
        shutil.copy(file, root)
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", root)
    assert same(import_model(root), import_model(pipeline))
    shutil.copytree(pipeline / "scheduler", root / "scheduler")
    (root / "scheduler_config.json").unlink()
    assert same(import_model(root), import_model(pipeline))


def test_the_folder_of_an_average_is_its_network(pipeline):
    network = UNet2DModel.from_pretrained(pipeline / "unet", low_cpu_mem_usage=False)
    average = EMAModel(network.parameters(), model_cls=UNet2DModel, model_config=network.config)
    average.optimization_step = 3_000_000  # more than any size of a network
    average.save_pretrained(pipeline / "unet_ema")
    assert same(import_model(pipeline / "unet_ema"), import_model(pipeline))
    rewrite(pipeline / "unet_ema" / "config.json", optimization_step=3_000_000)
    assert same(import_model(pipeline / "unet_ema"), import_model(pipeline))


def test_a_key_that_asks_for_nothing_is_ignored_with_a_word(pipeline):
    expected = import_model(pipeline)
    rewrite(pipeline / "unet" / "config.json", future=None, other=False)
    with pytest.warns(UserWarning, match="future"):
        assert same(import_model(pipeline), expected)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_key_that_asks_for_something_is_refused_by_name(part, tmp_path):
    folder = save(DiTPipeline(dit(), vae(), ddim()), tmp_path / "dit")
    rewrite(folder / part / "config.json", tomorrow="rope")
    with pytest.raises(CheckpointError, match="tomorrow"):
        _ = import_model(folder).image_shape


@pytest.mark.parametrize(
    "prefix", ["", "_orig_mod.", "module.", "model.", "ema.average.", "network.", "module.network."]
)
def test_tensors_of_a_described_network_may_have_been_wrapped(prefix, tmp_path):
    network = SmallUNet(8, 1, (8, 8))
    file, config = tmp_path / "x.safetensors", tmp_path / "x.yaml"
    save_file({f"{prefix}{name}": value for name, value in network.state_dict().items()}, file)
    parts = {"class_path": "SmallUNet", "init_args": {"resolution": 8, "channels": 1, "widths": [8, 8]}}
    config.write_text(yaml.safe_dump({"denoiser": {"network": parts, "preconditioning": {"class_path": "EDM"}}}))
    found = import_model(file, Options(config=config)).denoiser.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())
