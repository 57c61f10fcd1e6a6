"""A text-to-image student's folder: stock diffusers makes its very latents from the same seed, and fdistill too."""

import diffusers
import pytest
import torch
from cases import slow_but
from safetensors.torch import load_file
from text_pipelines import built
from torch.testing import assert_close

from fdistill.io.export import export_folder
from fdistill.io.export.stock_text import scheduled
from fdistill.io.importing import Options, import_model
from fdistill.io.load import load_model
from fdistill.io.stock_pipeline import PIPELINE, StockPipeline
from fdistill.sampling.generator import GenerativeModel

pytestmark = pytest.mark.system  # seconds, too many for make check

PROMPT = "a red seven"
SIDES = {"sana": 32, "sana-sprint": 32, "lumina2": 64}
FAMILIES = ("sd", "sd-v", "sd-zero-snr", "sdxl", "pixart", "sana", "sana-sprint", "sd3", "flux", "flux-schnell")
FAMILIES += ("qwen-image", "lumina2", "z-image")


@pytest.fixture(scope="module")
def teachers(folders):
    """Folder and teacher of each tiny pipeline, imported once by whoever asks first."""
    made = {}

    def teacher(name):
        folder, _ = folders(name)
        if name not in made:
            made[name] = import_model(folder, Options(resolution=(SIDES.get(name, 16),), num_steps=1))
        return folder, made[name]

    return teacher


def student(teacher, sigmas=None, start="unit"):
    path = teacher.denoiser.preconditioning.path
    last = 1e8 if sigmas is None and not hasattr(path, "num_timesteps") else sigmas
    levels = path.noise_ratio(torch.ones(1, dtype=torch.float64)) if last is None else last
    return GenerativeModel.student(teacher.denoiser, levels, {PIPELINE: teacher.facts[PIPELINE]}, start)


def at_timesteps(teacher, *timesteps):
    path = teacher.denoiser.preconditioning.path
    return path.noise_ratio(torch.tensor(timesteps, dtype=torch.float64) / (path.num_timesteps - 1))


def stock_latents(folder, model, name, **call):
    """What stock diffusers makes of the exported folder by the card's call."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    side, family = SIDES.get(name, 16), model.denoiser.network.family
    if name.startswith(("sana", "pixart")):
        call["use_resolution_binning"] = False
    with torch.no_grad():
        latents = pipeline(
            PROMPT, height=side, width=side, output_type="latent", generator=torch.manual_seed(3), **call
        ).images
    return family.prediction(latents) if hasattr(family, "packed") else latents


def difference(ours, theirs):
    """The largest one, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def exported(name, teachers, model, folder):
    """Latents of one seed from the model, from stock diffusers on the folder of its export, and from fdistill on it."""
    source, _ = teachers(name)
    condition = StockPipeline(source).ask([PROMPT], (SIDES.get(name, 16),) * 2, null=False).condition
    noise = model.noise(1, seed=3)
    if hasattr(model.denoiser.network.family, "packed") and noise.ndim == 5:  # its scheduler draws in that layout
        unpacked = [model.denoiser.network.family.prediction(z.reshape(1, -1, 16)) for z in noise.unbind(1)[1:]]
        noise = torch.stack([noise[:, 0], *unpacked], dim=1)
    ours = model.sample(noise, condition)
    export_folder(model, folder)
    again = load_model(folder)
    assert again.facts[PIPELINE] == str(folder.resolve())
    return ours, stock_latents(folder, model, name, **scheduled(model).call), again.sample(noise, condition)


@pytest.mark.parametrize("name", slow_but(FAMILIES, *FAMILIES[::3]))
def test_one_step(name, teachers, tmp_path):
    _, teacher = teachers(name)
    ours, stock, again = exported(name, teachers, student(teacher), tmp_path / "student")
    assert difference(ours, stock) < 1e-5
    assert torch.equal(again, ours)


def test_weights_of_a_variant_are_found_in_the_folder(tmp_path):
    """As of a download of half weights: stock diffusers asks for no variant of what we write."""
    built("sd").to(torch.float16).save_pretrained(tmp_path / "source", variant="fp16", max_shard_size="20KB")
    teacher = import_model(tmp_path / "source", Options(resolution=(16,), num_steps=1))
    export_folder(student(teacher), tmp_path / "student")
    for part in ("text_encoder", "vae"):
        assert list((tmp_path / "source" / part).glob("*.fp16*"))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "student")
    text = StockPipeline(tmp_path / "source").ask([PROMPT], (16, 16), null=False).condition
    assert_close(
        pipeline.encode_prompt(PROMPT, "cpu", 1, False)[0].float(), text["encoder_hidden_states"], rtol=0, atol=1e-2
    )


def test_a_program_of_prompts_is_refused_before_anything_is_written(teachers, tmp_path):
    with pytest.raises(ValueError, match="torch_export takes latents and classes: got a student of prompts"):
        export_folder(student(teachers("sd")[1]), tmp_path / "student", programs=["torch_export"])
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "sana", "z-image"])
def test_four_steps(name, teachers, tmp_path):
    _, teacher = teachers(name)
    levels = at_timesteps(teacher, 999, 749, 499, 249) if name == "sd" else [1e8, 3.0, 1.0, 1 / 3]
    ours, stock, again = exported(name, teachers, student(teacher, levels), tmp_path / "student")
    assert difference(ours, stock) < 1e-5
    assert torch.equal(again, ours)


@pytest.mark.parametrize("timesteps", [[399], [999, 600]])
def test_levels_that_are_no_default_of_a_scheduler(timesteps, teachers, tmp_path):
    _, teacher = teachers("sdxl")
    model = student(teacher, at_timesteps(teacher, *timesteps))
    ours, stock, again = exported("sdxl", teachers, model, tmp_path / "student")
    assert difference(ours, stock) < 1e-5
    assert torch.equal(again, ours)


def test_a_student_that_starts_at_sigma_z(teachers, tmp_path):
    _, teacher = teachers("sd")
    ours, stock, again = exported("sd", teachers, student(teacher, start="sigma"), tmp_path / "student")
    assert difference(ours, stock) < 1e-5
    assert torch.equal(again, ours)
    with pytest.raises(ValueError, match="start"):
        scheduled(student(teacher, at_timesteps(teacher, 399), start="sigma"))


def test_a_default_call_is_an_error_or_the_student_and_never_guided(teachers, tmp_path):
    _, teacher = teachers("sd")
    model = student(teacher)
    export_folder(model, tmp_path / "student")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="original"):
        pipeline(PROMPT, height=16, width=16)
    made = [
        stock_latents(tmp_path / "student", model, "sd", num_inference_steps=1, guidance_scale=scale)
        for scale in (1.0, 7.5)
    ]
    assert_close(*made, rtol=0, atol=0)


def test_half_precision_by_choice(teachers, tmp_path):
    _, teacher = teachers("sd3")
    model = student(teacher)
    export_folder(model, tmp_path / "student", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "student" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "student", torch_dtype=torch.bfloat16)
    for name, value in pipeline.transformer.state_dict().items():
        assert_close(value.bfloat16(), model.denoiser.network.stock.state_dict()[name].bfloat16(), rtol=0, atol=0)


def test_the_card_says_the_call_the_license_and_the_base(teachers, tmp_path):
    source, teacher = teachers("flux")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: dev\n---\n")
    export_folder(student(teacher, [1e8, 1.0]), tmp_path / "student")
    card = (tmp_path / "student" / "README.md").read_text()
    assert "license: other\nlicense_name: dev" in card
    assert "pipeline_tag: text-to-image" in card
    assert "sigmas=[1.0, 0.5], guidance_scale=3.5, generator=torch.manual_seed(0)" in card
    assert str(source) not in card


def test_a_teacher_that_has_gone_is_one_line(teachers, tmp_path):
    _, teacher = teachers("sd")
    model = student(teacher)
    model.facts[PIPELINE] = str(tmp_path / "gone")
    with pytest.raises(ValueError, match="gone"):
        export_folder(model, tmp_path / "student")
    assert not (tmp_path / "student").exists()
