"""Folders of diffusers: unconditional and class-conditional pipelines of pixels or latents, or a network alone."""

import inspect
from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel

from fdistill.decoders import Decoder
from fdistill.denoiser import Denoiser
from fdistill.generative_model import GenerativeModel
from fdistill.importing.options import NUM_STEPS, Options
from fdistill.importing.schedule import Schedule, read_schedule
from fdistill.networks import StockDiT, StockUNet
from fdistill.weight_files import CheckpointError, load_weights, read_json, read_stock_weights

_NETWORKS, _VAES = ("unet", "transformer"), ("vae", "vqvae")
_SUPPORTED = (
    "an unconditional or class-conditional UNet2DModel or DiTTransformer2DModel with its scheduler, of pixels or of "
    "the latents of a VAE (DDPMPipeline, DDIMPipeline, LDMPipeline, DiTPipeline ...)"
)
_PIXEL_STD, _LATENT_STD = 0.5, 1.0  # of images in [-1, 1] (arXiv 2206.00364); of latents times their scaling_factor


def read_pipeline(source: Path, options: Options) -> GenerativeModel:
    """The teacher of a pipeline's folder.

    Raises:
        CheckpointError: if it asks for more than classes (text, another image ...), or its parts are broken.
    """
    index = read_json(source / "model_index.json", "the index of a diffusers pipeline")
    pipeline = str(index.get("_class_name"))
    parts = {
        name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]
    }
    foreign = sorted(parts.keys() - {*_NETWORKS, *_VAES, "scheduler"})
    networks = [name for name in _NETWORKS if name in parts]
    if foreign or len(networks) != 1 or "scheduler" not in parts:
        got = ", ".join(foreign) or f"one of {', '.join(sorted(parts)) or 'no parts'}"
        raise CheckpointError(f"{source} holds a {pipeline} with {got}: expected {_SUPPORTED}")
    if parts["scheduler"] == "CMStochasticIterativeScheduler":
        raise CheckpointError(f"{source} holds a {pipeline}, a student already: fdistill sample and evaluate take it")
    vaes = [source / name for name in _VAES if name in parts]
    schedule = read_schedule(source / "scheduler")
    return _teacher(source, source / networks[0], schedule, vaes[0] if vaes else None, options, pipeline)


def read_network(source: Path, options: Options) -> GenerativeModel:
    """The teacher of a network's folder, with the scheduler given, in it, or beside it as in a pipeline.

    Raises:
        CheckpointError: if there is no scheduler, or something is broken.
    """
    beside = source / "scheduler_config.json", source.parent / "scheduler" / "scheduler_config.json"
    file = options.scheduler or next((place for place in beside if place.is_file()), beside[0])
    return _teacher(source, source, read_schedule(file), options.vae, options, None)


def _teacher(
    source: Path, folder: Path, schedule: Schedule, vae: Path | None, options: Options, pipeline: str | None
) -> GenerativeModel:
    network = _network(folder, options)
    load_weights(network, network.from_stock_names(read_stock_weights(folder)), folder)
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
    config = read_json(folder / "config.json", "the configuration of a network of diffusers")
    kind = config.get("_class_name")
    plain = {name: value for name, value in config.items() if name[0] != "_"}
    if kind == "Transformer2DModel" and plain.get("norm_type") == "ada_norm_zero":  # DiT before diffusers 0.28
        takes = inspect.signature(DiTTransformer2DModel.__init__).parameters
        kind, plain = DiTTransformer2DModel.__name__, {name: plain[name] for name in plain if name in takes}
    try:
        if kind == "UNet2DModel":
            if plain.get("time_embedding_type") == "fourier":
                raise CheckpointError("a fourier time embedding reads noise levels, and schedulers give timesteps")
            return StockUNet(plain, last_class_is_none=options.last_class_is_none)
        if kind == DiTTransformer2DModel.__name__:
            if options.last_class_is_none:
                raise CheckpointError('a DiT has its own row for "no class": leave --last_class_is_none out')
            return StockDiT(plain)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    raise CheckpointError(f"{folder} holds a {kind}: expected {_SUPPORTED}")
