"""A student's adapters as a LoRA file: stock diffusers makes the student's latents of it and the base; alpha counts."""

import dataclasses

import diffusers
import pytest
import torch
from cases import slow_but
from safetensors.torch import load_file
from text_pipelines import built, side_of

from fdistill.core.places import LORA_RECORD
from fdistill.core.weight_files import CheckpointError
from fdistill.io.export import export_folder
from fdistill.io.export.lora import FILE, export_lora
from fdistill.io.export.stock_text import scheduled
from fdistill.io.importing import Options, import_model
from fdistill.io.load import load_model
from fdistill.io.stock_pipeline import PIPELINE, StockPipeline
from fdistill.models.adapters import adapter_layers, with_adapters
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM

pytest.importorskip("peft", reason="diffusers loads LoRA files by peft: pip install 'fdistill[lora]'")
pytestmark = pytest.mark.system  # seconds, too many for make check

PROMPT = "a red seven"
FAMILIES = ("sd", "sd-v", "sdxl", "sana", "sana-sprint", "sd3", "flux", "flux-schnell", "qwen-image", "lumina2")
FAMILIES += ("z-image",)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Folder and teacher of each tiny pipeline, made once by whoever asks first."""
    root, made = tmp_path_factory.mktemp("pipelines"), {}

    def teacher(name):
        if name not in made:
            built(name).save_pretrained(root / name)
            made[name] = import_model(root / name, Options(resolution=(side_of(name),), num_steps=1))
        return root / name, made[name]

    return teacher


def student(teacher, targets="all", rank=2, alpha=4.0):
    """One step, with adapters that change much, scaled by two."""
    denoiser = with_adapters(teacher.denoiser, rank, alpha, targets)
    generator = torch.Generator().manual_seed(1)
    for layer in adapter_layers(denoiser).values():
        torch.nn.init.normal_(layer.lora_B.weight, std=0.2, generator=generator)
    path = teacher.denoiser.preconditioning.path
    level = path.noise_ratio(torch.ones(1, dtype=torch.float64)) if hasattr(path, "num_timesteps") else 1e8
    return GenerativeModel.student(denoiser, level, {PIPELINE: teacher.facts[PIPELINE]}, "unit")


def stock_latents(pipeline, model, name, call):
    pipeline.set_progress_bar_config(disable=True)
    side, family = side_of(name), model.denoiser.network.family
    if name.startswith("sana"):
        call = call | {"use_resolution_binning": False}
    with torch.no_grad():
        latents = pipeline(
            PROMPT, height=side, width=side, output_type="latent", generator=torch.manual_seed(3), **call
        ).images
    return family.prediction(latents) if hasattr(family, "packed") else latents


def with_lora(source, folder):
    """The pipeline that the card's lines build, with the places of base and LoRA put in."""
    lines = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    lines = lines.replace(f'"{source.name}"', f'"{source}"').replace(f'"{folder.name}"', f'"{folder}"')
    found = {}
    exec(lines.split("image = ")[0], found)
    return found["pipeline"]


def difference(ours, theirs):
    """The largest one, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def ours_of(model, source, name):
    condition = StockPipeline(source).ask([PROMPT], (side_of(name),) * 2, null=False).condition
    return model.sample(model.noise(1, seed=3), condition)


def call_of(model):
    made = scheduled(model).call
    guided = "guidance_scale" in (model.denoiser.network.family.guided or {})
    return made | ({"guidance_scale": 0.0} if guided else {})


@pytest.mark.parametrize("targets", ["attention", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", slow_but(FAMILIES, "sd", "sdxl", "sd3", "flux"))
def test_stock_diffusers_makes_the_students_latents_of_base_and_lora(name, targets, teachers, tmp_path):
    source, teacher = teachers(name)
    model = student(teacher, targets)
    ours = ours_of(model, source, name)
    base = ours_of(GenerativeModel.student(teacher.denoiser, model.sigmas, {}, "unit"), source, name)
    export_lora(model, tmp_path / "lora")
    export_folder(model, tmp_path / "merged")
    lora = stock_latents(with_lora(source, tmp_path / "lora"), model, name, call_of(model))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "merged")
    merged = stock_latents(pipeline, model, name, scheduled(model).call)
    print(
        f"{name}, {targets}: LoRA {difference(ours, lora):.1e}, merged folder {difference(ours, merged):.1e}, "
        f"base {difference(ours, base):.1e}"
    )
    assert difference(ours, lora) < 1e-5
    assert difference(ours, merged) < 1e-4
    assert difference(ours, base) > 1e-2


@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl"])
def test_kohyas_names_load_again_with_their_alpha(name, teachers, tmp_path):
    source, teacher = teachers(name)
    model = student(teacher, "dmd2")
    export_lora(model, tmp_path / "lora", "kohya")
    stored = load_file(tmp_path / "lora" / FILE)
    assert all(name.startswith("lora_unet_") for name in stored)
    assert {float(value) for name, value in stored.items() if name.endswith(".alpha")} == {4.0}
    ours = ours_of(model, source, name)
    kohya = stock_latents(with_lora(source, tmp_path / "lora"), model, name, call_of(model))
    print(f"{name}, kohya: LoRA {difference(ours, kohya):.1e}")
    assert difference(ours, kohya) < 1e-5


def test_what_import_reads_of_base_and_lora_is_the_student(teachers, tmp_path):
    source, teacher = teachers("sdxl")
    model = student(teacher)
    export_lora(model, tmp_path / "lora")
    again = import_model(source, Options(resolution=(16,), num_steps=1, lora=tmp_path / "lora" / FILE))
    same = GenerativeModel.student(again.denoiser, model.sigmas, {}, "unit")
    assert difference(ours_of(same, source, "sdxl"), ours_of(model, source, "sdxl")) < 1e-5


def test_the_card_says_base_scheduler_and_call_first(teachers, tmp_path):
    source, teacher = teachers("sdxl")
    export_lora(student(teacher), tmp_path / "lora")
    card = (tmp_path / "lora" / "README.md").read_text()
    assert card.index("## Use") < 200
    assert 'LCMScheduler.from_pretrained("lora", subfolder="scheduler")' in card
    assert "num_inference_steps=1, guidance_scale=0.0" in card
    assert str(source) not in card


def test_an_exported_lora_is_replaced_and_nothing_else_is(teachers, tmp_path):
    _, teacher = teachers("sd")
    model = student(teacher)
    export_lora(model, tmp_path / "lora")
    export_lora(model, tmp_path / "lora", dtype=torch.float16)
    assert {value.dtype for value in load_file(tmp_path / "lora" / FILE).values()} == {torch.float16}
    (tmp_path / "lora" / LORA_RECORD).unlink()
    with pytest.raises(ValueError, match="replaced"):
        export_lora(model, tmp_path / "lora")
    with pytest.raises(CheckpointError, match="--lora"):
        load_model(tmp_path / "lora")


@pytest.mark.parametrize(
    ("name", "names", "says"),
    [("pixart", "peft", "PixArtSigmaPipeline"), ("sd3", "kohya", "sd and sdxl"), ("sdxl", "kohya", "add_embedding")],
)
def test_what_would_not_load_again_is_refused_and_not_written(name, names, says, teachers, tmp_path):
    _, teacher = teachers(name)
    with pytest.raises(ValueError, match=says):
        export_lora(student(teacher), tmp_path / "lora", names)
    assert not (tmp_path / "lora").exists()


def test_a_student_without_adapters_is_refused(teachers, tmp_path):
    _, teacher = teachers("sd")
    full = GenerativeModel.student(teacher.denoiser, [10.0], {PIPELINE: teacher.facts[PIPELINE]}, "unit")
    with pytest.raises(ValueError, match="adapters"):
        export_lora(full, tmp_path / "lora")


def test_a_student_of_another_temperature_is_refused(teachers, tmp_path):
    _, teacher = teachers("sd")
    warm = dataclasses.replace(student(teacher), temperature=1.1)
    with pytest.raises(ValueError, match="noise of temperature 1"):
        export_lora(warm, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_a_network_of_no_text_pipeline_is_refused(tmp_path):
    network = SmallUNet(4, 1, (8, 12))
    model = GenerativeModel.student(with_adapters(Denoiser(network, EDM(0.5)), 2, targets="all"), [80.0])
    with pytest.raises(ValueError, match="leave --lora out"):
        export_lora(model, tmp_path / "lora")


def test_a_tuned_teacher_is_its_pipeline_with_the_file_and_its_card_asks_for_no_scheduler(teachers, tmp_path):
    source, teacher = teachers("sd")
    tuned = dataclasses.replace(teacher, denoiser=student(teacher).denoiser, guidance=3.0)
    export_lora(tuned, tmp_path / "lora")
    again = import_model(source, Options(resolution=(side_of("sd"),), num_steps=1, lora=tmp_path / "lora" / FILE))
    again.guidance = 3.0
    assert difference(ours_of(again, source, "sd"), ours_of(tuned, source, "sd")) < 1e-5
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "num_inference_steps=1, guidance_scale=3.0" in card
    assert "scheduler =" not in card
    assert not (tmp_path / "lora" / "scheduler").exists()
    assert with_lora(source, tmp_path / "lora").unet is not None
