"""The exported folder: stock diffusers where the network is a diffusers class, our own `OneStepPipeline` elsewhere.

A student in `DiffusersUNet` under EDM preconditioning is exactly what diffusers' ConsistencyModelPipeline computes with
sigma_min = 0 and the timestep 250 ln(sigma), in one step or, asked for them, in several. Such a folder needs nothing of
ours. All weights are safetensors.
"""

import functools
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel
from safetensors.torch import save_file

from fdistill.checkpoints import RECORD, model_from_record, model_record, model_weights
from fdistill.denoiser import Denoiser
from fdistill.export.model_card import model_card
from fdistill.export.program import Program, check_program, write_program
from fdistill.export.stock_levels import stock_levels
from fdistill.files import replace_folder
from fdistill.generative_model import GenerativeModel
from fdistill.networks import DiffusersUNet, StockUNet
from fdistill.preconditioning import EDM, ConsistencyEDM
from fdistill.weight_files import (
    BUILD_ERRORS,
    CheckpointError,
    check_finite_weights,
    checked_number,
    load_weights,
    read_config,
    read_json,
    read_safetensors,
    read_stock_weights,
    reason,
    shown,
)
from fdistill.weight_fitting import build_with_weights, known_config

_STOCK_PIPELINE = "ConsistencyModelPipeline"
_OWN_WEIGHTS = "denoiser.safetensors"
_DECODER = "vae"
_TIME_SCALE = 1000.0  # a ConsistencyModelPipeline's timestep is 250 ln(sigma), 1000 times EDM's noise input
_REMEDY = "export it again"
_SHIMS = {  # the two files in which DiffusionPipeline.from_pretrained(folder, trust_remote_code=True) looks for classes
    "pipeline.py": ("the pipeline", "OneStepPipeline"),
    "model/generator.py": ("its model", "StudentLoader"),
}
_SHIM = '''"""Where diffusers finds {what}; fdistill must be installed."""

from fdistill.export.pipeline import {name}

__all__ = ["{name}"]
'''


def export_folder(
    model: GenerativeModel,
    target: Path | str,
    report: dict[str, Any] | None = None,
    programs: Sequence[Program] = (),
) -> Path:
    """Write the model as a folder; an existing folder is replaced only once the new one is whole.

    Args:
        model: student or teacher.
        target: the folder.
        report: an evaluation report, for the model card.
        programs: artefacts of a student's map that the folder holds beside its weights.

    Returns:
        The folder.

    Raises:
        OSError: if it cannot be written.
        ValueError: for programs of a teacher, or whose packages are missing.
    """
    target = Path(target)
    for program in programs:
        check_program(model, program)
    stock = loads_in_stock_diffusers(model)
    with replace_folder(target) as folder:
        if stock:
            _write_stock(model, folder)
        else:
            _write_own(model, folder)
        record = model_record(model)
        if model.decoder is not None:
            model.decoder.save(folder / _DECODER)
            record["decoder"] = _DECODER
        (folder / f"{RECORD}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for program in programs:
            write_program(model, program, folder)
        card = folder / "README.md"
        card.write_text(model_card(model, target.name, stock, report), encoding="utf-8")
        for weights in folder.rglob("*.safetensors"):  # safetensors writes for the owner only
            weights.chmod(card.stat().st_mode)
    return target


def loads_in_stock_diffusers(model: GenerativeModel) -> bool:
    """Whether diffusers alone can load and run the exported folder."""
    denoiser = model.denoiser
    return (
        model.kind == "student"
        and isinstance(denoiser.network, DiffusersUNet)
        and type(denoiser.preconditioning) is EDM
        and stock_levels(model.sigmas) is not None
        and model.decoder is None
    )


def read_folder(path: Path | str) -> GenerativeModel:
    """The model of an exported folder, or of any ConsistencyModelPipeline folder around a UNet2DModel.

    Raises:
        CheckpointError: if a file is missing, broken, or does not fit.
    """
    path = Path(path)
    record_file = path / f"{RECORD}.json"
    record = read_json(record_file) if record_file.is_file() else None
    if (path / _OWN_WEIGHTS).is_file() and record is not None:
        return model_from_record(record, read_safetensors(path / _OWN_WEIGHTS, _REMEDY), path)
    index = read_json(path / "model_index.json")
    if index.get("_class_name") != _STOCK_PIPELINE:
        raise CheckpointError(
            f"{path} holds a {shown(index.get('_class_name'))}: expected {_STOCK_PIPELINE} or a folder of fdistill "
            f"export; fdistill import {path} TARGET makes a teacher of a diffusion model"
        )
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    if record is None and scheduler.get("sigma_min") != 0:
        return _read_published(path, scheduler)
    return _read_stock(path, scheduler, record or {})


def _write_stock(model: GenerativeModel, folder: Path) -> None:
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    levels = stock_levels(model.sigmas)
    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=levels.num_train_timesteps,
        sigma_min=0.0,
        sigma_max=float(model.sigmas[0]),
        sigma_data=model.denoiser.preconditioning.sigma_data,
        rho=levels.rho,
        clip_denoised=False,
    )
    unet = model.denoiser.network.stock_unet().cpu()
    ConsistencyModelPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)


def _read_stock(path: Path, scheduler: dict[str, Any], record: dict[str, Any]) -> GenerativeModel:
    """One step from the scheduler's sigma_max, and those further ones that our record tells."""
    config = read_json(path / "unet" / "config.json")
    weights = read_safetensors(path / "unet" / "diffusion_pytorch_model.safetensors", _REMEDY)
    if config.get("_class_name") != UNet2DModel.__name__:
        raise CheckpointError(f"{path}/unet/config.json is of {config.get('_class_name')}: expected UNet2DModel")
    if scheduler.get("sigma_min") != 0:
        raise CheckpointError(f"{path}: only sigma_min = 0 is a denoiser in one step, got {scheduler.get('sigma_min')}")
    try:
        unet = UNet2DModel.from_config(config)
        load_weights(unet, weights, path)
        denoiser = Denoiser(DiffusersUNet.from_stock(unet), EDM(scheduler["sigma_data"]))
        sigmas = [scheduler["sigma_max"], *record.get("sigmas", [])[1:]]
        return GenerativeModel.student(denoiser, sigmas, record.get("facts", {}))
    except KeyError as error:
        raise CheckpointError(f"{path}: its configuration lacks {error}") from error
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no student: {error}") from error


def _read_published(path: Path, scheduler: dict[str, Any]) -> GenerativeModel:
    """A consistency model that others trained: one step from its scheduler's sigma_max."""
    folder = path / "unet"
    config = read_config(folder / "config.json", "the network of a consistency model")
    if config.get("_class_name") != UNet2DModel.__name__:
        raise CheckpointError(f"{folder}/config.json is of {shown(config.get('_class_name'))}: expected UNet2DModel")
    plain = {name: value for name, value in config.items() if name[:1] != "_"}
    plain = known_config(UNet2DModel, plain, folder / "config.json")
    weights = read_stock_weights(folder)
    check_finite_weights(weights, folder)
    build = functools.partial(StockUNet, plain, _TIME_SCALE)
    try:
        levels = [
            checked_number(scheduler.get(name, usual), name, low, 1e6)
            for name, usual, low in (("sigma_data", 0.5, 1e-6), ("sigma_min", 0.002, 0.0), ("sigma_max", 80.0, 1e-6))
        ]
        network = build_with_weights(build, weights, folder, lambda plan: plan.from_stock_names(weights))
        denoiser = Denoiser(network.eval(), ConsistencyEDM(*levels[:2]))
        return GenerativeModel.student(denoiser, levels[2], {"imported_from": path.resolve().name})
    except CheckpointError:
        raise
    except BUILD_ERRORS as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error


def _write_own(model: GenerativeModel, folder: Path) -> None:
    save_file(model_weights(model), folder / _OWN_WEIGHTS, metadata={"format": "pt"})
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
