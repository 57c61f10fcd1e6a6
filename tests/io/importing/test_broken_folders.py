"""Folders of diffusers, and descriptions in YAML, that hold nonsense are refused in one line with their path."""

import json
import math
import os
import shutil

import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, DiTPipeline
from safetensors.torch import load_file, save_file
from stock_models import SMALL_UNET, ddim, dit, save, unet, vae

from fdistill.core.weight_files import CheckpointError, read_config, shown
from fdistill.io.importing import Options, import_model
from fdistill.models.networks import SmallUNet, StockUNet
from fdistill.theory.preconditioning import EDM

WEIGHTS = "diffusion_pytorch_model.safetensors"
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(DDPMPipeline(unet(num_class_embeds=3), DDPMScheduler()), folder / "unet")
    save(DiTPipeline(dit(), vae(), ddim()), folder / "dit")
    return folder


@pytest.fixture
def pixels(saved, tmp_path):
    return shutil.copytree(saved / "unet", tmp_path / "pixels")


@pytest.fixture
def latents(saved, tmp_path):
    return shutil.copytree(saved / "dit", tmp_path / "latents")


def refused(source, folder=None, **options):
    """The line, which begins with a path in `folder` (the source, where not given)."""
    with pytest.raises(ValueError, match=str(folder or source)) as error:
        import_model(source, Options(**options))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1200
    return str(error.value)


def rewrite(file, changes):
    content = changes if isinstance(changes, str) else json.dumps(json.loads(file.read_text()) | changes)
    file.write_text(content)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": [2**70, 8]}, "unet"),
        ({"block_out_channels": [0, 0]}, "positive"),
        ({"block_out_channels": ["a", "b"]}, "integers"),
        ({"block_out_channels": []}, "UNet2DModel"),
        ({"num_class_embeds": "3"}, "num_class_embeds"),
        ({"num_class_embeds": -3}, "num_class_embeds"),
        ({"sample_size": 0}, "sample_size"),
        ({"attention_head_dim": 0}, "UNet2DModel"),
        ({"act_fn": None}, "UNet2DModel"),
        ({"": 1}, "diffusers"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_unet_that_nobody_trained(changes, words, pixels):
    rewrite(pixels / "unet" / "config.json", changes)
    assert words in refused(pixels)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_layers": "3"}, "num_layers"),
        ({"patch_size": 0}, "patch_size"),
        ({"sample_size": [8, 8]}, "sample_size"),
        ({"activation_fn": "evil"}, "DiTTransformer2DModel"),
        ({"out_channels": 0}, "out_channels of a DiT"),
    ],
)
def test_a_dit_that_nobody_trained(changes, words, latents):
    rewrite(latents / "transformer" / "config.json", changes)
    assert words in refused(latents)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_train_timesteps": 10**10}, "num_train_timesteps"),
        ({"num_train_timesteps": None}, "num_train_timesteps"),
        ({"prediction_type": ["x"]}, "prediction_type"),
        ({"beta_schedule": ["x"]}, "beta_schedule"),
        ({"trained_betas": 5}, "trained_betas"),
        ({"trained_betas": [math.nan] * 1000}, "trained_betas"),
        *((FLOW | {"shift": value}, "shift") for value in ("x", None, math.inf)),
        *((FLOW | {"num_train_timesteps": value}, "num_train_timesteps") for value in ("x", None, 0)),
        ({"_class_name": "x\x1b[2J" * 100_000}, "_class_name"),
        ({"_class_name": ["x"]}, "_class_name"),
    ],
)
def test_a_scheduler_that_nobody_made(changes, words, pixels):
    rewrite(pixels / "scheduler" / "scheduler_config.json", changes)
    assert words in refused(pixels)


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        (lambda value: torch.full_like(value, math.nan), "class_embedding.weight not finite; conv_in.bias not finite"),
        (lambda value: torch.full_like(value, math.inf), "not finite"),
        (lambda value: value.long(), "class_embedding.weight of torch.int64"),
        (lambda value: value.bool(), "of torch.bool"),
        (lambda value: value.to(torch.complex64), "of torch.complex64"),
        (lambda value: value.to(torch.float8_e4m3fn), "of torch.float8_e4m3fn"),
    ],
    ids=["nan", "inf", "int64", "bool", "complex64", "float8"],
)
def test_weights_that_are_no_finite_numbers(convert, words, pixels):
    file = pixels / "unet" / WEIGHTS
    save_file({name: convert(value) for name, value in load_file(file).items()}, file)
    message = refused(pixels)
    assert words in message
    assert "145 tensors are not" in message


def test_names_of_tensors_are_escaped_and_cut(pixels):
    file = pixels / "unet" / WEIGHTS
    save_file(load_file(file) | {"a\n\x1b[2Jb": torch.zeros(1), "z" * 10_000: torch.zeros(1)}, file)
    assert r"unet.a\n\x1b[2Jb unexpected; unet.zzz" in refused(pixels)
    assert shown("x" * 201) == "x" * 200 + "..."


@pytest.mark.parametrize(
    "placed",
    [["a"], None, {}, {"x": 5}, {"x": {}}, {"x": ".."}, {"x": ""}, {"x": "a\0.safetensors"}, {"x": "/etc/passwd"}],
)
def test_an_index_that_names_no_shards(placed, pixels):
    (pixels / "unet" / WEIGHTS).unlink()
    (pixels / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": placed}))
    assert "weight_map names the file of each tensor, beside it: got " in refused(pixels)


def pickled(folder, content):
    (folder / "unet" / WEIGHTS).unlink()
    file = folder / "unet" / "diffusion_pytorch_model.bin"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    return file


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({1: torch.zeros(1)}, "no tensors by name"),
        ({"x": torch.zeros(3, 3).to_sparse()}, "no tensors by name"),
        ({"x": torch.zeros(3, device="meta")}, "no tensors by name"),
        ({"state_dict": {"x": torch.zeros(1)}}, "another architecture"),
        ({"state_dict": {"x": [1]}}, "no tensors by name"),
        ({"model": {"x": torch.zeros(1)}, "ema": {"x": torch.zeros(1)}}, "no tensors by name"),
        *(
            (data, "is damaged, or a pickle of more than tensors")
            for data in (b"", b"\x80\x02NR.", b"\x80\x020.", b"PK\3\4")
        ),
    ],
)
def test_a_bin_that_holds_no_weights(content, words, pixels):
    pickled(pixels, content)
    assert words in refused(pixels)


@pytest.mark.parametrize("name", ["unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_never_ends_is_not_read(name, make, pixels):
    (pixels / name).unlink()
    make(pixels / name)
    assert f"{name} is no regular file" in refused(pixels)


def test_a_file_that_may_not_be_read_says_so(pixels, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != WEIGHTS)
    assert f"{WEIGHTS}: permission denied" in refused(pixels)


def test_a_configuration_larger_than_any(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(CheckpointError, match="bytes"):
        read_config(tmp_path / "config.json", "a configuration")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": [65536, 65536]}, "another architecture"),
        ({"scaling_factor": 0}, "scaling_factor is a number"),
        ({"latents_mean": [1, 2]}, "latents_mean has one number for each of 4 channels"),
        ({"norm_num_groups": 0}, "diffusers builds no AutoencoderKL"),
    ],
)
def test_a_vae_that_nobody_trained(changes, words, latents):
    rewrite(latents / "vae" / "config.json", changes)
    model = import_model(latents)
    with pytest.raises(CheckpointError) as error:
        _ = model.image_shape
    assert str(error.value).startswith(str(latents / "vae"))
    assert words in str(error.value)


def test_images_of_a_vae_have_a_largest_size(latents):
    decoder = import_model(latents).decoder
    with pytest.raises(CheckpointError, match="pixels"):
        decoder(torch.zeros(1, 4, 1, 3000))


NETWORK = {"class_path": "SmallUNet", "init_args": {"resolution": 8, "widths": [8, 8], "num_classes": 2}}
HOW = {"class_path": "EDM", "init_args": {"sigma_data": 0.4}}


def described(network=None, sampling=None, **arguments):
    network = network or {"class_path": "SmallUNet", "init_args": NETWORK["init_args"] | arguments}
    return {"denoiser": {"network": network, "preconditioning": HOW}} | (
        {} if sampling is None else {"sampling": sampling}
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (described(widths=[100_000, 100_000]), "architecture"),
        (described(widths=[2**70, 8]), "model"),
        (described(widths="ab"), "model"),
        (described(widths=[]), "model"),
        (described({"class_path": "SmallUNet", "init_args": [1]}), "init_args"),
        (described({"class_path": ["x"]}), "init_args"),
        (described(sampling={"num_steps": 10**11}), "num_steps"),
        (described(sampling={"num_steps": 2.5}), "num_steps"),
        (described(sampling={"sigma_max": math.inf}), "sigma_max"),
        (described(sampling={"sigma_min": "x"}), "sigma_min"),
        (described(sampling={"guidance": [1]}), "guidance"),
        ("denoiser: &a [*a]\n", "denoiser"),
        ("denoiser: &a {network: *a, preconditioning: *a}\n", "recursion"),
        ("2001-99-99", "denoiser"),
        ("a: " + "9" * 5000, "YAML"),
        ("#" * 200_000, "bytes"),
        ("!!python/object/apply:os.system [exit 1]", "YAML"),
    ],
)
def test_descriptions_of_no_network(content, words, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(SmallUNet(8, 1, (8, 8), num_classes=2).state_dict(), file)
    (tmp_path / "model.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    assert words in refused(file, tmp_path, config=tmp_path / "model.yaml")


def test_only_a_row_that_nobody_trained_may_be_nan(tmp_path):
    config = {"config": SMALL_UNET | {"num_class_embeds": 3}}
    weights = StockUNet(**config).state_dict()
    assert weights[StockUNet.CLASSES][-1].isnan().all()
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(described({"class_path": "StockUNet", "init_args": config})))
    options, file = Options(config=tmp_path / "model.yaml"), tmp_path / "model.safetensors"
    save_file(weights, file)
    assert import_model(file, options).num_classes == 3
    save_file({f"network.{name}": value for name, value in weights.items()}, file)
    assert isinstance(import_model(file, options).denoiser.preconditioning, EDM)
    save_file(weights | {StockUNet.CLASSES: torch.full_like(weights[StockUNet.CLASSES], math.nan)}, file)
    assert "unet.class_embedding.weight not finite" in refused(file, config=options.config)
