"""Where a model is expected and something else lies: the line says what it is and which command takes it."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDPMPipeline, DDPMScheduler
from PIL import Image
from safetensors.torch import save_file
from stock_models import save, unet

from fdistill.core.weight_files import CheckpointError
from fdistill.evaluation.sources import open_source
from fdistill.io.checkpoints import read_run_checkpoint
from fdistill.io.export import export_folder
from fdistill.io.importing import import_model
from fdistill.io.load import load_model
from fdistill.training.initial_networks import teacher_model


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """One of everything that people give in place of a model."""
    root = tmp_path_factory.mktemp("places")
    save(DDPMPipeline(unet(), DDPMScheduler()), root / "stock")
    shutil.copytree(root / "stock" / "unet", root / "checkpoint-500" / "unet_ema")
    shutil.copytree(root / "stock" / "unet", root / "checkpoint-500" / "unet")
    snapshot = root / "models--a--b" / "snapshots" / "0f"
    shutil.copytree(root / "stock", snapshot)
    for folder in ("run/checkpoints", "run/samples", "lora", "latents", "photos/cat", "npz", "exported", "alone"):
        (root / folder).mkdir(parents=True)
    torch.save({"state_dict": {}}, root / "run" / "checkpoints" / "last.ckpt")
    for place in ("run/samples/1.png", "photos/cat/1.png"):
        Image.new("L", (8, 8)).save(root / place)
    save_file({"unet.to_q.lora_A.weight": torch.zeros(1)}, root / "lora" / "pytorch_lora_weights.safetensors")
    (root / "latents" / "latents.json").write_text("{}")
    np.savez(root / "npz" / "s.npz", samples=np.zeros((3, 1, 8, 8), np.float32))
    (root / "exported" / "fdistill.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, root / "exported" / "denoiser.safetensors")
    save_file({"x": torch.zeros(1)}, root / "alone" / "x.safetensors")
    save_file({"latents": torch.zeros(1), "samples": torch.zeros(1)}, root / "alone" / "pairs.safetensors")
    (root / "alone" / "network-snapshot-1.pkl").write_bytes(b"\x80\x02}.")
    (root / "alone" / "config.yaml").write_text("model: 1")
    torch.save({"conv.weight": torch.zeros(1)}, root / "alone" / "tensors.pt")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "pytorch-lightning_version": "2"}, root / "alone" / "other.ckpt")
    return root


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("stock", "fdistill import {root}/stock TARGET"),
        ("stock/unet", "fdistill import {root}/stock/unet TARGET"),
        ("stock/unet/diffusion_pytorch_model.safetensors", "fdistill import {root}/stock/unet TARGET"),
        ("checkpoint-500", "fdistill import {root}/checkpoint-500/unet_ema TARGET"),
        ("models--a--b", "fdistill import {root}/models--a--b/snapshots/0f TARGET"),
        ("run", "{root}/run/checkpoints/last.ckpt"),
        ("run/checkpoints", "{root}/run/checkpoints/last.ckpt"),
        ("lora", "LoRA"),
        ("lora/pytorch_lora_weights.safetensors", "LoRA"),
        ("latents", "LatentFolder"),
        ("photos", "evaluate"),
        ("photos/cat/1.png", "images"),
        ("npz/s.npz", "fdistill evaluate takes samples"),
        ("exported/denoiser.safetensors", "give its folder, {root}/exported"),
        ("exported/fdistill.json", "give {root}/exported"),
        ("alone/x.safetensors", "--config FILE.yaml"),
        ("alone/pairs.safetensors", "pairs"),
        ("alone/network-snapshot-1.pkl", "fdistill import {root}/alone/network-snapshot-1.pkl TARGET"),
        ("alone/config.yaml", "configuration"),
        ("alone/tensors.pt", "fdistill import"),
        ("alone/other.ckpt", "fdistill import"),
    ],
)
@pytest.mark.parametrize("read", [load_model, teacher_model])
def test_what_is_no_model_of_ours_is_named_with_what_takes_it(read, given, words, places):
    with pytest.raises(CheckpointError) as error:
        read(places / given)
    message = str(error.value)
    assert words.format(root=places) in message
    assert message.startswith(str(places / given))
    assert "\n" not in message
    assert "damaged" not in message


@pytest.mark.parametrize(
    "given", ["run", "run/checkpoints", "lora", "checkpoint-500", "stock/unet", "alone/config.yaml"]
)
def test_evaluate_says_the_same(given, places):
    with pytest.raises(CheckpointError) as ours:
        load_model(places / given)
    with pytest.raises(CheckpointError) as evaluated:
        open_source(places / given)
    assert str(evaluated.value) == str(ours.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("run", "last.ckpt"),
        ("lora", "LoRA"),
        ("lora/pytorch_lora_weights.safetensors", "LoRA"),
        ("stock/unet/diffusion_pytorch_model.safetensors", "fdistill import {root}/stock/unet TARGET"),
        ("checkpoint-500", "unet_ema"),
        ("npz/s.npz", "samples"),
        ("photos", "images"),
        ("exported", "use it as it is"),
        ("nowhere", "nothing is downloaded"),
    ],
)
def test_import_says_what_else_it_is(given, words, places):
    with pytest.raises(CheckpointError) as error:
        import_model(places / given)
    assert words.format(root=places) in str(error.value)


def test_a_folder_of_diffusers_with_a_single_file_beside_is_no_run(places, tmp_path):
    folder = shutil.copytree(places / "stock", tmp_path / "stock")
    (folder / "v1-5-pruned.ckpt").touch()
    with pytest.raises(CheckpointError, match="import"):
        load_model(folder)
    assert type(open_source(folder)).__name__ == "DiffusersSource"


def test_a_runs_folder_given_to_continue_names_its_checkpoint(places):
    with pytest.raises(CheckpointError, match="checkpoint"):
        read_run_checkpoint(places / "run")


def test_import_leaves_a_checkpoint_of_ours_as_it_is(teacher_checkpoint):
    with pytest.raises(CheckpointError, match="use it as it is"):
        import_model(teacher_checkpoint)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("sigma_min", [0.002, 0.5])
def test_a_published_consistency_model_makes_what_its_pipeline_makes(classes, sigma_min, tmp_path):
    network = unet(num_class_embeds=classes, resnet_time_scale_shift="scale_shift")
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=sigma_min, sigma_max=3.0)
    pipeline = save(ConsistencyModelPipeline(network, scheduler), tmp_path / "cm")
    model, source = load_model(pipeline), open_source(pipeline)
    labels = None if classes is None else torch.tensor([0, 1, 2, 2])
    images = model.sample(model.noise(4, 7), labels).clamp(-1, 1)
    torch.testing.assert_close(images, source.draw(4, 7, labels), rtol=0, atol=2e-5)
    again = load_model(export_folder(model, tmp_path / "again"))
    assert torch.equal(again.sample(again.noise(4, 7), labels).clamp(-1, 1), images)


@pytest.mark.parametrize("changes", [{"sigma_data": "x"}, {"sigma_max": -1}, {"sigma_min": None}])
def test_a_consistency_model_that_nobody_made_is_refused(changes, tmp_path):
    pipeline = ConsistencyModelPipeline(unet(), CMStochasticIterativeScheduler(num_train_timesteps=40))
    folder = save(pipeline, tmp_path / "cm")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        load_model(folder)
