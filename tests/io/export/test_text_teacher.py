"""A text teacher that was trained here becomes a stock pipeline: the same pictures, and a VAE that changes nothing."""

import dataclasses

import diffusers
import pytest
import torch
from torch.testing import assert_close

from fdistill.core.weight_files import CheckpointError
from fdistill.io.export import export_folder
from fdistill.io.export.text_teacher import pixel_vae
from fdistill.io.importing import Options, import_model
from fdistill.io.stock_pipeline import PIPELINE, prompt_condition
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import WordUNet
from fdistill.models.networks.text.words import token_ids
from fdistill.sampling import DDIM
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import DDPMPath
from fdistill.theory.preconditioning import EpsPrediction, VPrediction

PROMPTS = ["a red seven", "a blue two"]
PATH = DDPMPath(0.00085, 0.012, 1000, "scaled_linear")


def teacher(preconditioning=VPrediction):
    torch.manual_seed(0)
    words = sorted({word for prompt in PROMPTS for word in prompt.split()})
    network = WordUNet(words, 5, widths=(8, 16), text_width=16, heads=2, groups=4)
    levels = PATH.noise_ratio(torch.tensor([999, 499], dtype=torch.float64) / 999)
    sigmas = torch.cat([levels, levels.new_zeros(1)])
    how = {"sampler": DDIM(), "start": "unit"}
    return GenerativeModel(Denoiser(network, preconditioning(PATH, 999)).eval(), "teacher", sigmas, 3.0, **how)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    made = teacher()
    return made, export_folder(made, tmp_path_factory.mktemp("teacher") / "pipeline")


def test_a_vae_of_pixels_is_the_identity():
    vae, x = pixel_vae(3), torch.rand(2, 3, 8, 8) * 2 - 1
    factor = vae.config.scaling_factor
    assert_close(vae.decode(x / factor).sample, x, rtol=0, atol=1e-6)
    assert_close(vae.encode(x).latents * factor, x, rtol=0, atol=1e-6)


def test_the_stock_pipeline_draws_what_the_teacher_draws(exported):
    made, folder = exported
    text = Condition({"input_ids": torch.tensor(token_ids(PROMPTS, made.denoiser.network.tokenizer))})
    ours = made.sample(made.noise(2, 0), text)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    images = pipeline(PROMPTS, generator=torch.manual_seed(0), **call).images
    theirs = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    assert_close(theirs, ours.clamp(-1, 1), rtol=0, atol=1e-5)


def test_what_import_reads_of_it_is_the_same_teacher(exported):
    made, folder = exported
    again = import_model(folder, Options(num_steps=2, guidance=3.0))
    text = Condition({"input_ids": torch.tensor(token_ids(PROMPTS, made.denoiser.network.tokenizer))})
    noise = made.noise(2, 1)
    assert_close(again.sample(noise, prompt_condition(again, PROMPTS, 2)), made.sample(noise, text), rtol=0, atol=1e-5)


def test_where_the_text_encoders_are_gone_one_line_says_what_to_do(tmp_path):
    moved = dataclasses.replace(teacher(), facts={PIPELINE: str(tmp_path / "gone")})
    with pytest.raises(CheckpointError, match=r"gone.*put it, or a link to it, back there"):
        prompt_condition(moved, PROMPTS, 2)


def test_another_prediction_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="VPrediction"):
        export_folder(teacher(EpsPrediction), tmp_path / "pipeline")
    assert not (tmp_path / "pipeline").exists()
