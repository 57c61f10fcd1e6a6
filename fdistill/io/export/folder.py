"""The exported folder: stock diffusers where the network is a diffusers class, our own `OneStepPipeline` elsewhere.

A student in `DiffusersUNet` under EDM preconditioning is exactly what diffusers' ConsistencyModelPipeline computes with
sigma_min = 0 and the timestep 250 ln(sigma), in one step or, asked for them, in several. Such a folder needs nothing of
ours. All weights are safetensors.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fdistill.core.atomic_files import replace_folder
from fdistill.core.places import require_replaceable
from fdistill.io.checkpoints import OWN_WEIGHTS, RECORD, model_record, model_weights
from fdistill.io.export.model_card import model_card
from fdistill.io.export.program import Program, check_program, write_program
from fdistill.io.export.stock_levels import stock_levels
from fdistill.io.export.stock_text import (
    Scheduled,
    card_lines,
    check_stock_noise,
    is_text_student,
    scheduled,
    write_text_pipeline,
)
from fdistill.io.export.text_teacher import check_text_teacher, is_text_teacher, text_teacher_card, write_text_teacher
from fdistill.io.stock_pipeline import PIPELINE
from fdistill.models.networks import DiffusersUNet, Generator
from fdistill.sampling.draw import require_model
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM

_DECODER = "vae"
_SHIMS = {  # the two files in which DiffusionPipeline.from_pretrained(folder, trust_remote_code=True) looks for classes
    "pipeline.py": ("the pipeline", "OneStepPipeline"),
    "model/generator.py": ("its model", "StudentLoader"),
}
_SHIM = '''"""Where diffusers finds {what}; fdistill must be installed."""

from fdistill.io.export.pipeline import {name}

__all__ = ["{name}"]
'''


def export_folder(
    model: GenerativeModel,
    target: Path | str,
    report: dict[str, Any] | None = None,
    programs: Sequence[Program] = (),
    overwrite: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the model as a folder; an exported model that is there is replaced only once the new one is whole.

    Args:
        model: student or teacher.
        target: the folder.
        report: an evaluation report, for the model card.
        programs: artefacts of a student's map that the folder holds beside its weights.
        dtype: of the network's weights, of a text-to-image student; others are float32.
        overwrite: whether a folder that holds something else is replaced too.

    Returns:
        The folder.

    Raises:
        OSError: if it cannot be written.
        ValueError: for a generator that is no network, programs of a teacher or whose packages are missing, or a
            target that holds something else.
    """
    model, target = require_model(model).merged(), Path(target)
    if not overwrite:
        require_replaceable(target)
    for program in programs:
        check_program(model, program)
    if model.first_step is not None:
        raise ValueError("a folder holds the student alone: export it without first_step, which sampling takes")
    if isinstance(model.denoiser.network, Generator):
        raise ValueError(
            "a pipeline runs a network: expected a student that is one, got the generator "
            f"{type(model.denoiser.network).__name__}; keep its checkpoint, or write the state_dict of "
            "fdistill.load(CHECKPOINT).denoiser.network by safetensors.torch.save_file"
        )
    made = scheduled(model) if is_text_student(model) else None
    if made is None and dtype != torch.float32:
        raise ValueError(f"a text-to-image student may be written in half precision, others in float32: got {dtype}")
    if is_text_teacher(model):
        check_text_teacher(model)
    stock = loads_in_stock_diffusers(model)
    if stock:
        check_stock_noise(model)
    lines: tuple[list[str], str] | None = None
    with replace_folder(target) as folder:
        if is_text_teacher(model):  # a stock pipeline like those of others, which import reads: no record of ours
            write_text_teacher(model, folder)
            lines = text_teacher_card(model, target.name)
        else:
            _write(model, folder, made, dtype)
            if made is not None:
                lines = card_lines(model, target.name, made, dtype)
        for program in programs:
            write_program(model, program, folder)
        card = folder / "README.md"
        card.write_text(model_card(model, target.name, stock, report, lines), encoding="utf-8")
        for weights in folder.rglob("*.safetensors"):  # safetensors writes for the owner only
            weights.chmod(card.stat().st_mode)
    return target


def _write(model: GenerativeModel, folder: Path, made: Scheduled | None, dtype: torch.dtype) -> None:
    """Networks, decoder and our record of a model; `made` is the scheduler of a text-to-image student."""
    record = model_record(model)
    if made is not None:
        write_text_pipeline(model, folder, made, dtype)
        # its text encoders lie beside it now
        record["facts"] = {name: value for name, value in record["facts"].items() if name != PIPELINE}
    elif loads_in_stock_diffusers(model):
        _write_stock(model, folder)
    else:
        _write_own(model, folder)
    if model.decoder is not None:
        if made is None:
            model.decoder.save(folder / _DECODER)
        record["decoder"] = _DECODER
    (folder / f"{RECORD}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def loads_in_stock_diffusers(model: GenerativeModel) -> bool:
    """Whether diffusers alone can load and run the exported folder."""
    denoiser = model.denoiser
    return (
        is_text_student(model)
        or is_text_teacher(model)
        or (
            model.kind == "student"
            and isinstance(denoiser.network, DiffusersUNet)
            and type(denoiser.preconditioning) is EDM
            and stock_levels(model.sigmas) is not None
            and model.decoder is None
            and model.start == "sigma"  # its scheduler starts from that level times the noise
        )
    )


def _write_stock(model: GenerativeModel, folder: Path) -> None:
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    denoiser, levels = model.denoiser, stock_levels(model.sigmas)
    assert levels is not None  # as `loads_in_stock_diffusers` has found
    assert isinstance(denoiser.network, DiffusersUNet)
    assert isinstance(denoiser.preconditioning, EDM)
    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=levels.num_train_timesteps,
        sigma_min=0.0,
        sigma_max=float(model.sigmas[0]),
        sigma_data=denoiser.preconditioning.sigma_data,
        rho=levels.rho,
        clip_denoised=False,
    )
    unet = denoiser.network.stock_unet().cpu()
    ConsistencyModelPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)


def _write_own(model: GenerativeModel, folder: Path) -> None:
    save_file(model_weights(model), folder / OWN_WEIGHTS, metadata={"format": "pt"})
    if model.kind == "student":
        index = {
            "_class_name": ["pipeline", "OneStepPipeline"],
            "_diffusers_version": version("diffusers"),
            "model": ["generator", "StudentLoader"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        (folder / "model").mkdir()
        for file, (what, name) in _SHIMS.items():
            (folder / file).write_text(_SHIM.format(what=what, name=name), encoding="utf-8")
