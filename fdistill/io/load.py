"""Models as they were saved: the checkpoint of a run, an exported folder, or a published consistency model."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdistill.core.build import build_with_weights, known_config
from fdistill.core.fingerprints import fingerprint
from fdistill.core.presets import checkpoint as known_checkpoint
from fdistill.core.weight_files import (
    CheckpointError,
    as_one_line,
    check_finite_weights,
    checked_number,
    load_weights,
    read_config,
    read_json,
    read_safetensors,
    read_stock_weights,
    shown,
)
from fdistill.io.checkpoints import (
    AVERAGE,
    GUIDE,
    OWN_WEIGHTS,
    RECORD,
    STOCK_PIPELINE,
    model_from_record,
    read_run_checkpoint,
)
from fdistill.io.shards import SHARDS, Shards
from fdistill.io.stock_pipeline import COND_PROJ, NULL_WEIGHTS, PIPELINE
from fdistill.io.strangers import what_lies_at
from fdistill.models.adapters import load_adapter_state, with_adapters
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import DiffusersUNet, StockUNet
from fdistill.models.networks.text import FAMILIES, family_of
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM, ConsistencyEDM

_TIME_SCALE = 1000.0  # a ConsistencyModelPipeline's timestep is 250 ln(sigma), 1000 times EDM's noise input
_REMEDY = "export it again"
_HELD = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def load_model(path: Path | str, merge: bool = True) -> GenerativeModel:
    """The generative model of a run checkpoint (its EMA weights) or of an exported folder.

    Args:
        path: of either, or the name of a checkpoint that comes with the package, as digits-student.
        merge: whether adapters are added to weights of the model's own; else it keeps them.

    Raises:
        CheckpointError: with one line that says what is wrong with it.
    """
    if not isinstance(path, str | Path):
        raise CheckpointError(f"a model is loaded from a path, or by the name of a shipped one: got {path!r}")
    path = known_checkpoint(path)
    said = what_lies_at(path)
    if said is not None:
        raise CheckpointError(said)
    if path.is_dir():
        return read_folder(path)
    checkpoint = read_run_checkpoint(path, whole=False)
    if RECORD not in checkpoint:
        raise CheckpointError(
            f"{path} was not written by fdistill: it has no {RECORD!r} record; save its network alone as safetensors, "
            "and make a teacher of that by fdistill import FILE.safetensors TARGET --config FILE.yaml"
        )
    if SHARDS in checkpoint:
        shards = Shards(checkpoint, path)
        for under in (AVERAGE, GUIDE):
            checkpoint = shards.whole(checkpoint, f"state_dict/{under}")
    weights = {
        name.removeprefix(AVERAGE): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(AVERAGE)
    }
    guide = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith(GUIDE)}
    if "adapters" not in checkpoint[RECORD]:
        return model_from_record(checkpoint[RECORD], weights | guide, path)
    adapted = _with_adapters(checkpoint[RECORD], weights, guide, path)
    return adapted.merged() if merge else adapted


def _with_adapters(
    record: dict[str, Any], weights: dict[str, Tensor], guide: dict[str, Tensor], path: Path
) -> GenerativeModel:
    """A student or tuned teacher whose weights are those of the teacher that its run names, with adapters.

    Raises:
        CheckpointError: where that teacher is not found, or is another one.
    """
    with as_one_line(f"the record of {path} describes no adapters"):
        how = dict(record["adapters"])
        base = dict(how.pop("base"))
        source, dtype = base["source"], _HELD[base["dtype"]]
    if not isinstance(source, str):
        raise CheckpointError(
            f"{path} holds adapters on weights that are those of a teacher that was no file: "
            "continue its run to use it, or give the teacher as a file"
        )
    try:
        teacher = load_model(source).denoiser
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} holds adapters on the weights of its teacher, which cannot be read: {error}"
        ) from error
    whole = teacher.state_dict()
    teacher.hold_in(dtype)
    if fingerprint(teacher.spec(), teacher.state_dict()) != base["fingerprint"]:
        raise CheckpointError(
            f"{path} holds adapters on the weights of its teacher: expected those with the fingerprint "
            f"{base['fingerprint']}, got others in {source}; put the teacher that it was trained on there"
        )
    model = model_from_record(record, whole | guide, path)
    with as_one_line(f"the adapters of {path} are none of its teacher's"):
        model.denoiser = with_adapters(model.denoiser.hold_in(dtype), **how).eval()
        load_adapter_state(model.denoiser, weights)
    return model


def read_folder(path: Path | str) -> GenerativeModel:
    """The model of an exported folder, or of any ConsistencyModelPipeline folder around a UNet2DModel.

    Raises:
        CheckpointError: if a file is missing, broken, or does not fit.
    """
    path = Path(path)
    record_file = path / f"{RECORD}.json"
    record = read_json(record_file) if record_file.is_file() else None
    if (path / OWN_WEIGHTS).is_file() and record is not None:
        return model_from_record(record, read_safetensors(path / OWN_WEIGHTS, _REMEDY), path)
    index = read_json(path / "model_index.json")
    if record is not None and family_of(index.get("_class_name")) is not None:
        return _read_text(path, record)
    if index.get("_class_name") != STOCK_PIPELINE:
        raise CheckpointError(
            f"{path} holds a {shown(index.get('_class_name'))}: expected {STOCK_PIPELINE} or a folder of fdistill "
            f"export; fdistill import {path} TARGET makes a teacher of a diffusion model"
        )
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    if record is None and scheduler.get("sigma_min") != 0:
        return _read_published(path, scheduler)
    return _read_stock(path, scheduler, record or {})


def _read_text(path: Path, record: dict[str, Any]) -> GenerativeModel:
    """A text-to-image student, whose prompts the text encoders beside it read."""
    try:
        arguments = record["denoiser"]["init_args"]["network"]["init_args"]
        part, takes = FAMILIES[arguments["family"]].part, arguments["null"] or {}
        record = record | {"facts": record["facts"] | {PIPELINE: str(path.resolve())}}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the record of {path} describes no text-to-image student: it lacks {error}") from error
    weights = {f"network.stock.{name}": value for name, value in read_stock_weights(path / part).items()}
    weights.pop(f"network.stock.{COND_PROJ}", None)
    if takes:
        null = read_safetensors(path / NULL_WEIGHTS, _REMEDY)
        weights |= {f"network.null_{index}": null[name] for index, name in enumerate(takes) if name in null}
    return model_from_record(record, weights, path)


def _read_stock(path: Path, scheduler: dict[str, Any], record: dict[str, Any]) -> GenerativeModel:
    """One step from the scheduler's sigma_max, and those further ones that our record tells."""
    from diffusers import UNet2DModel  # seconds of imports, which other models do without

    config = read_json(path / "unet" / "config.json")
    weights = read_safetensors(path / "unet" / "diffusion_pytorch_model.safetensors", _REMEDY)
    if config.get("_class_name") != UNet2DModel.__name__:
        raise CheckpointError(f"{path}/unet/config.json is of {config.get('_class_name')}: expected UNet2DModel")
    if scheduler.get("sigma_min") != 0:
        raise CheckpointError(f"{path}: only sigma_min = 0 is a denoiser in one step, got {scheduler.get('sigma_min')}")
    with as_one_line(f"{path} is no student"):
        unet = UNet2DModel.from_config(config)
        load_weights(unet, weights, path)
        denoiser = Denoiser(DiffusersUNet.from_stock(unet), EDM(scheduler["sigma_data"]))
        sigmas = [scheduler["sigma_max"], *record.get("sigmas", [])[1:]]
        return GenerativeModel.student(denoiser, sigmas, record.get("facts", {}))


def _read_published(path: Path, scheduler: dict[str, Any]) -> GenerativeModel:
    """A consistency model that others trained: one step from its scheduler's sigma_max."""
    from diffusers import UNet2DModel

    folder = path / "unet"
    config = read_config(folder / "config.json", "the network of a consistency model")
    if config.get("_class_name") != UNet2DModel.__name__:
        raise CheckpointError(f"{folder}/config.json is of {shown(config.get('_class_name'))}: expected UNet2DModel")
    plain = {name: value for name, value in config.items() if name[:1] != "_"}
    plain = known_config(UNet2DModel, plain, folder / "config.json")
    weights = read_stock_weights(folder)
    check_finite_weights(weights, folder)
    build = functools.partial(StockUNet, plain, _TIME_SCALE)
    with as_one_line(path):
        levels = [
            checked_number(scheduler.get(name, usual), name, low, 1e6)
            for name, usual, low in (("sigma_data", 0.5, 1e-6), ("sigma_min", 0.002, 0.0), ("sigma_max", 80.0, 1e-6))
        ]
        network = build_with_weights(build, weights, folder, lambda plan: plan.from_stock_names(weights))
        denoiser = Denoiser(network.eval(), ConsistencyEDM(*levels[:2]))
        return GenerativeModel.student(denoiser, levels[2], {"imported_from": path.resolve().name})
