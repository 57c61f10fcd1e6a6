"""Folders of diffusers: unconditional and class-conditional pipelines of pixels or latents, or a network alone."""

import functools
import inspect
from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DModel

from fdistill.core.build import build_with_weights, known_config
from fdistill.core.weight_files import (
    CheckpointError,
    as_one_line,
    check_finite_weights,
    read_config,
    read_json,
    read_stock_weights,
    shown,
)
from fdistill.io.importing.options import NUM_STEPS, Options
from fdistill.io.importing.schedule import StockSchedule, read_schedule
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import StockDiT, StockUNet
from fdistill.models.networks.text import family_of
from fdistill.models.vae import Decoder
from fdistill.sampling.generator import GenerativeModel

_NETWORKS, _VAES = ("unet", "transformer"), ("vae", "vqvae")
_SUPPORTED = (
    "an unconditional or class-conditional UNet2DModel or DiTTransformer2DModel with its scheduler, of pixels or of "
    "the latents of a VAE (DDPMPipeline, DDIMPipeline, LDMPipeline, DiTPipeline ...)"
)
_PIXEL_STD, _LATENT_STD = 0.5, 1.0  # of images in [-1, 1] (arXiv 2206.00364); of latents times their scaling_factor


def reads_text(source: Path) -> bool:
    """Whether the pipeline in a folder has a text encoder, or is of a family that needs one."""
    index = read_json(source / "model_index.json", "the index of a diffusers pipeline")
    return family_of(index.get("_class_name")) is not None or "text_encoder" in index


def read_pipeline(source: Path, options: Options) -> GenerativeModel:
    """The teacher of a pipeline's folder.

    Raises:
        CheckpointError: if it asks for more than classes (text, another image ...), or its parts are broken.
    """
    index = read_json(source / "model_index.json", "the index of a diffusers pipeline")
    pipeline = shown(index.get("_class_name"))
    parts = {
        name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]
    }
    foreign = sorted(parts.keys() - {*_NETWORKS, *_VAES, "scheduler"})
    networks = [name for name in _NETWORKS if name in parts]
    if foreign or len(networks) != 1 or "scheduler" not in parts:
        got = shown(", ".join(foreign)) or f"one of {', '.join(sorted(parts)) or 'no parts'}"
        raise CheckpointError(f"{source} holds a {pipeline} with {got}: expected {_SUPPORTED}")
    if parts["scheduler"] == "CMStochasticIterativeScheduler":
        raise CheckpointError(f"{source} holds a {pipeline}, a student already: fdistill sample and evaluate take it")
    vaes = [source / name for name in _VAES if name in parts]
    schedule = read_schedule(_part(source, "scheduler", "scheduler_config.json"))
    return _teacher(
        source, _part(source, networks[0], "config.json"), schedule, vaes[0] if vaes else None, options, pipeline
    )


def _part(source: Path, name: str, file: str) -> Path:
    """The folder of a part: its own, or the pipeline's, where the first repositories of the hub have all files."""
    return source if (source / file).is_file() and not (source / name).is_dir() else source / name


def read_network(source: Path, options: Options) -> GenerativeModel:
    """The teacher of a network's folder, with the scheduler given, in it, or beside it as in a pipeline.

    Raises:
        CheckpointError: if there is no scheduler, or something is broken.
    """
    return _teacher(
        source, source, read_schedule(options.scheduler or scheduler_of(source)), options.vae, options, None
    )


def scheduler_of(network: Path) -> Path:
    """The scheduler's file of a network's folder: in it, or beside it as in a pipeline."""
    beside = network / "scheduler_config.json", network.parent / "scheduler" / "scheduler_config.json"
    return next((place for place in beside if place.is_file()), beside[0])


def _teacher(
    source: Path, folder: Path, schedule: StockSchedule, vae: Path | None, options: Options, pipeline: str | None
) -> GenerativeModel:
    network = _network(folder, options)
    denoiser = Denoiser(network, schedule.preconditioning)
    facts: dict[str, Any] = {
        "imported_from": source.resolve().name,
        "format": f"{pipeline or type(network).__name__} of diffusers",
        "sigma_data": options.sigma_data or (_PIXEL_STD if vae is None else _LATENT_STD),
    }
    levels = schedule.levels(options.num_steps or NUM_STEPS)
    guidance = options.scale(denoiser, source)
    decoder = None if vae is None else Decoder(vae)
    return GenerativeModel(denoiser.eval(), "teacher", levels, guidance, facts, decoder=decoder)


def _network(folder: Path, options: Options) -> StockUNet | StockDiT:
    config = read_config(folder / "config.json", "the configuration of a network of diffusers")
    kind = config.get("_class_name")
    plain = {name: value for name, value in config.items() if name[:1] != "_"}
    if kind == "Transformer2DModel" and plain.get("norm_type") == "ada_norm_zero":  # DiT before diffusers 0.28
        takes = inspect.signature(DiTTransformer2DModel.__init__).parameters
        kind, plain = DiTTransformer2DModel.__name__, {name: plain[name] for name in plain if name in takes}
    if kind not in ("UNet2DModel", DiTTransformer2DModel.__name__):
        raise CheckpointError(f"{folder} holds a {shown(kind)}: expected {_SUPPORTED}")
    plain = known_config(UNet2DModel if kind == "UNet2DModel" else DiTTransformer2DModel, plain, folder / "config.json")
    if kind == "UNet2DModel":
        if plain.get("time_embedding_type") == "fourier":
            raise CheckpointError(
                f"{folder}: a fourier time embedding reads noise levels, and schedulers give timesteps"
            )
        build: Any = functools.partial(StockUNet, plain, last_class_is_none=options.last_class_is_none)
    else:
        if options.last_class_is_none:
            raise CheckpointError(f'{folder}: a DiT has its own row for "no class": leave --last_class_is_none out')
        build = functools.partial(StockDiT, plain)
    weights = read_stock_weights(folder)
    check_finite_weights(weights, folder)
    with as_one_line(folder):
        return build_with_weights(build, weights, folder, lambda plan: plan.from_stock_names(weights))
