"""`fdistill import`: a diffusion model that others trained becomes a teacher."""

import shlex
from pathlib import Path
from typing import Any

import torch

from fdistill.core.places import require_replaceable, require_writable
from fdistill.io.export import export_folder
from fdistill.io.importing import Options
from fdistill.io.importing import import_model as read_model
from fdistill.io.importing.diffusers_folder import scheduler_of
from fdistill.io.stock_pipeline import PIPELINE
from fdistill.models.guidance import Guidance
from fdistill.models.networks import TextToImageNetwork
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import NOISE_ALONE, DDPMPath

_START = 5.0  # sigma_init in units of sigma_data: 2.5 for images (SiD, arXiv 2404.04057)


def import_model(
    source: str,
    target: str,
    scheduler: str | None = None,
    vae: str | None = None,
    config: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
    sigma_data: float | None = None,
    last_class_is_none: bool = False,
    resolution: int | list[int] | None = None,
    lora: str | None = None,
    guidance_rescale: float | None = None,
    overwrite: bool = False,
) -> None:
    """Make a teacher of a diffusers folder, a .safetensors file or EDM's pickle; none of them is executed.

    Args:
        source: folder of a diffusers pipeline or of its network alone, a .safetensors file, or a .pkl of EDM or EDM2.
        target: the folder to write, which fdistill sample, evaluate and fit take as a teacher.
        scheduler: scheduler_config.json of a network that has none beside it.
        vae: folder of the VAE, for a network that makes latents and is imported alone.
        config: YAML file with a denoiser section (network and preconditioning), for a .safetensors file.
        num_steps: steps of the teacher's sampler; 18 where not given.
        guidance: classifier-free guidance scale of the teacher's samples; none where not given.
        sigma_data: standard deviation of the data; 0.5 for images, 1 for latents, where not given and not known.
        last_class_is_none: the last class of a UNet2DModel means "no class".
        resolution: side in pixels of a text-to-image teacher's images, or [height, width]; its own where not given.
        lora: .safetensors file of an adapter that is merged, in float32, into the network of a text-to-image pipeline.
        guidance_rescale: share, in [0, 1], of guided predictions that are rescaled to the standard deviation of the
            unguided ones; of pipelines that take such a number.
        overwrite: replace the model that is there.
    """
    origin, folder = Path(source), Path(target)
    require_writable(folder / "README.md")
    if folder.is_file():
        raise NotADirectoryError(f"cannot write {folder}: it is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} is there already: name another folder, or give --overwrite")
    given = [None if file is None else Path(file) for file in (scheduler, vae, config, lora)]
    sides = (resolution,) if isinstance(resolution, int) else None if resolution is None else tuple(resolution)
    _check_apart(folder, [origin, *(file for file in given if file is not None), *_beside(origin)])
    require_replaceable(folder)  # an overwritten one is a model, no photographs
    options = Options(
        given[0], given[1], given[2], num_steps, guidance, sigma_data, last_class_is_none, sides, given[3]
    )._replace(guidance_rescale=guidance_rescale)
    model = read_model(origin, options)
    print("\n".join(_found(model, origin)))
    export_folder(model, folder, overwrite=True)  # the target has been checked
    evaluations = f"{model.evaluations} network evaluation{'s' * (model.evaluations > 1)}"
    print(f"wrote {folder}: a teacher of {evaluations} per sample")
    if PIPELINE in model.facts:
        print(f"its prompts are read by the text encoders in {model.facts[PIPELINE]}, which is to stay where it is")
        print(f"to see it:    fdistill sample --checkpoint {shlex.quote(str(folder))} --prompt 'TEXT'")
        print(f"to distil it: {_distils_prompts(model, folder)}")
        return
    print(f"to see it:    fdistill sample --checkpoint {shlex.quote(str(folder))}")
    print(f"to distil it: {_distils(model, folder)}")


def _beside(source: Path) -> list[Path]:
    """What is read though nobody names it: the scheduler of a network alone."""
    alone = (source / "config.json").is_file() and not (source / "model_index.json").is_file()
    return [scheduler_of(source)] if alone else []


def _check_apart(folder: Path, read: list[Path]) -> None:
    """Raises ValueError where writing the folder would replace what is read, or write among it."""
    target = folder.resolve()
    for place in (each.resolve() for each in read):
        if target == place or target in place.parents:
            raise ValueError(f"{folder} holds what is imported: name another folder")
        if place in target.parents:
            raise ValueError(f"{folder} lies inside what is imported: name another folder")


def _found(model: GenerativeModel, source: Path) -> list[str]:
    """What it is: class and size, prediction and path, samples, classes."""
    network, preconditioning = model.denoiser.network, model.denoiser.preconditioning
    parameters = sum(value.numel() for value in model.denoiser.parameters())
    path = getattr(preconditioning, "path", None)
    known = preconditioning if path is None else path
    arguments = ", ".join(
        f"{name}={_brief(value)}" for name, value in known.spec()["init_args"].items() if value is not None
    )
    prediction = type(preconditioning).__name__ + (f" on {type(path).__name__}" if path is not None else "")
    shape = "x".join(map(str, model.sample_shape))
    samples = f"samples {shape}"
    if isinstance(network, TextToImageNetwork):
        side = "x".join(str(length * network.image_factor) for length in model.sample_shape[1:])
        samples = f"latents {shape} of images of {side} pixels"
    elif model.decoder is not None:
        decoded = "x".join(map(str, model.image_shape))
        samples = f"latents {shape}, which {type(model.decoder.vae).__name__} decodes to {decoded}"
    classes = "none"
    if model.num_classes:
        classes = f"{model.num_classes:,}" + (' and "no class"' if network.knows_no_class else ', no "no class"')
    taken = ", ".join(network.takes) if isinstance(network, TextToImageNetwork) else ""
    return [
        f"{source}: {model.facts['format']}, {type(network).__name__} of {parameters:,} parameters",
        f"predicts: {prediction}({arguments})",
        f"makes: {samples}; " + (f"takes: {taken}" if taken else f"classes: {classes}"),
    ]


def _brief(value: object) -> str:
    return f"[{len(value)} numbers]" if isinstance(value, list) else str(value)


def _distils(model: GenerativeModel, folder: Path) -> str:
    """The command that distils it without data."""
    shape = ",".join(map(str, model.sample_shape))
    known: Any = model.facts.get("sigma_data")
    sigma_data = known or getattr(model.denoiser.preconditioning, "sigma_data", 0.5)
    return (
        "fdistill fit --config trainer --config imported "
        f"--model.teacher {shlex.quote(str(folder))} "
        f"--model.sigma_init {_START * sigma_data:g} --data.sample_shape '[{shape}]' "
        f"--data.num_classes {model.num_classes}"
    )


def _distils_prompts(model: GenerativeModel, folder: Path) -> str:
    """The two commands that distil it on prompts, from the level where a stock pipeline starts."""
    path: Any = getattr(model.denoiser.preconditioning, "path", None)
    last = float(path.noise_ratio(torch.ones(1, dtype=torch.float64))) if isinstance(path, DDPMPath) else NOISE_ALONE
    shape, pipeline = ",".join(map(str, model.sample_shape)), shlex.quote(model.facts[PIPELINE])
    scale = Guidance.of(model.guidance).scale
    guided = "" if scale == 1 else f"--model.guidance {scale:g} "
    return (
        f"fdistill encode-prompts PROMPTS.txt --pipeline {pipeline} --out prompts && "
        "fdistill fit --config trainer --config imported "
        f"--model.teacher {shlex.quote(str(folder))} --model.sigma_init {last:g} --model.start unit {guided}"
        f"--data Prompts --data.folder prompts --data.sample_shape '[{shape}]' --data.pipeline {pipeline}"
    )
