"""Folders of stock text-to-image pipelines become teachers, with or without an adapter merged into their network."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdistill.core.build import build_with_weights
from fdistill.core.weight_files import (
    BUILD_ERRORS,
    CheckpointError,
    check_finite_weights,
    read_json,
    read_stock_weights,
    reason,
)
from fdistill.io.importing.lora import merged
from fdistill.io.importing.options import Options
from fdistill.io.importing.schedule import read_schedule
from fdistill.io.stock_pipeline import PIPELINE, StockPipeline
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance, Norm
from fdistill.models.networks.text import TextToImageNetwork
from fdistill.models.vae import Decoder
from fdistill.sampling import DDIM, Renoising
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import NOISE_ALONE
from fdistill.theory.preconditioning import Preconditioning, VelocityPrediction


def read_text_pipeline(source: Path, options: Options) -> GenerativeModel:
    """The teacher of a text-to-image pipeline, at the noise levels that the pipeline visits by itself.

    Its text encoders stay where they are: they are loaded here for the null condition alone.

    Raises:
        CheckpointError: for a pipeline that is not known here, or whose parts are missing or broken.
        ValueError: for a resolution that does not fit.
    """
    stock = StockPipeline(source)
    side = stock.side if options.resolution is None else (options.resolution[0], options.resolution[-1])
    shape = stock.sample_shape(side)
    family = stock.at(shape)
    embedded, scale = _guidance(stock, options, source)
    asked = stock.ask([""], side, null=stock.has_null, num_steps=options.num_steps)
    preconditioning = _preconditioning(stock, family.time_scale)
    network = _network(
        stock,
        source,
        options.lora,
        {
            "family": stock.kind,
            "config": stock.config,
            "sample_shape": shape,
            "vae_factor": stock.vae_factor,
            "guidance": embedded,
        },
        asked.null,
    )
    facts: dict[str, Any] = {
        "imported_from": source.resolve().name,
        "format": f"{stock.name} of diffusers",
        "sigma_data": options.sigma_data or 1.0,
        PIPELINE: str(source.resolve()),
    }
    if options.lora is not None:
        facts["lora"] = options.lora.name
    levels = noise_levels(asked.times, preconditioning)
    sampler = Renoising() if stock.kind == "sana-sprint" else DDIM()
    decoder = Decoder(source / "vae")
    how: dict[str, Any] = {"sampler": sampler, "decoder": decoder, "start": "unit"}  # as stock pipelines start
    guidance = Guidance.limited(scale, None, None, *_rescaling(stock, options))
    return GenerativeModel(Denoiser(network, preconditioning).eval(), "teacher", levels, guidance, facts, **how)


def noise_levels(times: Tensor, preconditioning: Any) -> Tensor:
    """The noise levels of a pipeline's steps, falling to 0, from times of a flow or timesteps; float64.

    Args:
        times: of `StockPipeline.ask`.
        preconditioning: on the path of the network.
    """
    if isinstance(preconditioning, VelocityPrediction):
        levels = (times / (1 - times)).nan_to_num(NOISE_ALONE).clamp_max(NOISE_ALONE)  # one step to a terminal is 0/0
    else:
        path = preconditioning.path
        levels = path.noise_ratio(times / (path.num_timesteps - 1))
    return torch.cat([torch.unique(levels[levels > 0]).flip(0), levels.new_zeros(1)])


def _preconditioning(stock: StockPipeline, scale: float | None) -> Preconditioning:
    file = stock.folder / "scheduler" / "scheduler_config.json"
    name = read_json(file, "the scheduler of this pipeline").get("_class_name")
    if scale is not None and name == "SCMScheduler":  # of Sana-Sprint, which is a flow in other words
        return VelocityPrediction(scale)
    found = read_schedule(file).preconditioning
    if isinstance(found, VelocityPrediction) != (scale is not None):
        expected = "of a flow" if scale is not None else "of timesteps"
        raise CheckpointError(f"{file}: the network of a {stock.name} learned on a path {expected}: got a {name}")
    return found if scale is None else VelocityPrediction(scale)


def _guidance(stock: StockPipeline, options: Options, source: Path) -> tuple[float | None, float]:
    """The scale that the network is told, and that of classifier-free guidance."""
    if stock.network.config.get("guidance_embeds"):
        return (stock.guidance if options.guidance is None else options.guidance), 1.0
    if options.guidance not in (None, 1) and not stock.has_null:
        raise CheckpointError(
            f"guidance is distilled into {source}, a {stock.name}, which compares with no other prompt: leave "
            "--guidance out"
        )
    return None, 1.0 if options.guidance is None else options.guidance


def _rescaling(stock: StockPipeline, options: Options) -> tuple[float, Norm]:
    """How the pipeline brings a guided prediction to the size of an unguided one."""
    if options.guidance_rescale is None:
        return (0.0, "sample") if stock.family.norm is None else (1.0, stock.family.norm)
    argument, norm = stock.family.rescaling
    if not stock.takes(argument):
        raise CheckpointError(f"a {stock.name} takes no {argument}: leave --guidance_rescale out")
    return options.guidance_rescale, norm


def _network(
    stock: StockPipeline, source: Path, lora: Path | None, arguments: dict[str, Any], null: Condition | None
) -> TextToImageNetwork:
    folder = source / stock.family.part
    weights = read_stock_weights(folder)
    check_finite_weights(weights, folder)
    if lora is not None:
        weights = merged(weights, lora, stock.family.part)
    shapes = None if null is None else {name: list(value.shape[1:]) for name, value in null.items()}
    build = functools.partial(TextToImageNetwork, **arguments, null=shapes)
    try:
        return build_with_weights(build, weights, folder, lambda plan: plan.from_stock_names(weights, null))
    except CheckpointError:
        raise
    except BUILD_ERRORS as error:
        raise CheckpointError(f"{folder}: {reason(error)}") from error
