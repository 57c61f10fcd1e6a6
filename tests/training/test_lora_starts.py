"""A student that starts as a LoRA file of its teacher: added to all of its weights, or as the adapter that learns."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from text_pipelines import side_of
from text_teachers import teacher_and_prompts
from torch.testing import assert_close

from fdistill.core.weight_files import CheckpointError
from fdistill.io.importing import Options, import_model
from fdistill.io.stock_pipeline import METADATA
from fdistill.models.adapters import adapter_layers, adapter_state, merged, shares, with_adapters
from fdistill.objectives import DiffInstruct
from fdistill.theory.noise_levels import LogNormal
from fdistill.training import DistillationModule
from fdistill.training.roles import FullCopies, SharedBase

pytestmark = pytest.mark.system  # tiny pipelines, seconds


@pytest.fixture(scope="module")
def known(folders):
    """Folder and teacher of the tiny Stable Diffusion, and its prompts."""
    folder = folders("sd")[0]
    return folder, *teacher_and_prompts(folder, "sd")


def lora(denoiser, file, prefix="unet.", rank=3, ranks=None):
    """Random factors of all layers that are large enough, with an alpha of twice their rank."""
    made = with_adapters(denoiser, rank, targets="all")
    generator = torch.Generator().manual_seed(2)
    state = adapter_state(made.network.stock)
    state = {f"{prefix}{name}": torch.randn(value.shape, generator=generator) / 10 for name, value in state.items()}
    for name in ranks or ():
        state[name] = state[name][:2] if "lora_A" in name else state[name][:, :2].contiguous()
    config = {f"{prefix}r": rank, f"{prefix}lora_alpha": 2 * rank}
    save_file(state, file, metadata={"format": "pt", METADATA: json.dumps(config)})
    return state


def distilled(teacher, roles, student):
    how = {"sigma_init": 10.0, "start": "unit", "student_optimizer": torch.optim.Adam}
    return DistillationModule(
        teacher,
        DiffInstruct(),
        noise_levels=LogNormal(-0.5, 1.0),
        roles=roles,
        student=str(student),
        fake_score_optimizer=torch.optim.Adam,
        **how,
    )


def prediction(denoiser, condition):
    x = torch.randn(2, *denoiser.sample_shape, generator=torch.Generator().manual_seed(4)) * 3
    with torch.no_grad():
        return denoiser.eval()(x, torch.full((2,), 3.0), condition.rows(slice(2)))


def test_delta_and_adapter_start_as_the_network_that_import_makes_of_the_file(known, tmp_path):
    folder, teacher, prompts = known
    file = tmp_path / "lora.safetensors"
    state = lora(teacher.denoiser, file)
    imported = import_model(folder, Options(resolution=(side_of("sd"),), num_steps=2, lora=file)).denoiser
    expected = prediction(imported, prompts.condition)
    assert float((expected - prediction(teacher.denoiser, prompts.condition)).abs().max()) > 0.1
    full = distilled(teacher, FullCopies(), file)
    assert_close(prediction(full.student, prompts.condition), expected, rtol=1e-5, atol=1e-5)
    adapted = distilled(teacher, SharedBase(rank=1), file)
    assert_close(prediction(adapted.student, prompts.condition), expected, rtol=1e-4, atol=1e-4)
    assert shares(adapted.student, adapted.teacher)
    learned = adapter_state(adapted.student.network.stock)
    assert {f"unet.{name}" for name in learned} == set(state)
    assert all(torch.equal(value, state[f"unet.{name}"]) for name, value in learned.items())
    assert adapted.roles.record("student")["rank"] == 3
    assert adapted.roles.record("student")["alpha"] == 6
    assert adapted.roles.record("fake_score")["rank"] == 1


def test_what_a_checkpoint_records_builds_the_same_adapters(known, tmp_path):
    _, teacher, prompts = known
    lora(teacher.denoiser, tmp_path / "lora.safetensors")
    module = distilled(teacher, SharedBase(rank=1), tmp_path / "lora.safetensors")
    again = with_adapters(teacher.denoiser, **module.roles.record("student"))
    assert adapter_layers(again).keys() == adapter_layers(module.student).keys()
    assert {layer.scale for layer in adapter_layers(again).values()} == {2.0}
    assert_close(
        prediction(merged(module.student), prompts.condition), prediction(module.student, prompts.condition),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_a_lora_of_another_base_names_three_layers(known, folders, tmp_path):
    _, teacher, _ = known
    other, _ = teacher_and_prompts(folders("sdxl")[0], "sdxl")
    lora(other.denoiser, tmp_path / "lora.safetensors")
    for roles in (FullCopies(), SharedBase(rank=2)):
        with pytest.raises(CheckpointError, match="another network") as caught:
            distilled(teacher, roles, tmp_path / "lora.safetensors")
        assert str(caught.value).count(";") == 3  # three layers, and the remedy


def test_a_file_that_is_not_there_is_no_lora(known, tmp_path):
    for roles in (FullCopies(), SharedBase(rank=2)):
        with pytest.raises(CheckpointError, match="there is no"):
            distilled(known[1], roles, tmp_path / "lora.safetensors")


def test_several_ranks_are_a_delta_and_no_adapter(known, tmp_path):
    _, teacher, prompts = known
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    file = tmp_path / "lora.safetensors"
    lora(teacher.denoiser, file, ranks=[f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"])
    with pytest.raises(CheckpointError, match="FullCopies"):
        distilled(teacher, SharedBase(rank=2), file)
    assert prediction(distilled(teacher, FullCopies(), file).student, prompts.condition).isfinite().all()


def test_a_checkpointed_student_beside_shared_weights_is_refused(known):
    _, teacher, _ = known
    with pytest.raises(ValueError, match="LoRA"):
        SharedBase().start("student", dataclasses.replace(teacher).denoiser, teacher.denoiser, teacher.denoiser)
