"""What kind of model lies at a path, and the teacher that it becomes."""

import dataclasses
from pathlib import Path
from typing import Any

from fdistill.core.weight_files import CheckpointError, file_size, shown
from fdistill.io.checkpoints import RECORD, read_run_checkpoint
from fdistill.io.importing.configured import read_configured
from fdistill.io.importing.diffusers_folder import read_network, read_pipeline, reads_text
from fdistill.io.importing.options import Options
from fdistill.io.strangers import what_lies_at
from fdistill.models.vae import Decoder
from fdistill.sampling.generator import GenerativeModel

_PICKLES = (".pt", ".pth", ".ckpt", ".bin")
_KNOWN = "a folder of diffusers, a .safetensors file with --config, or a .pkl of EDM"


def import_model(source: Path | str, options: Options | None = None) -> GenerativeModel:
    """The teacher at `source`: a diffusers pipeline, one of its networks alone, a .safetensors, or EDM's .pkl.

    Args:
        source: file or folder; nothing in it is executed.
        options: what the source does not say itself.

    Raises:
        CheckpointError: with one line that says what was found and what is supported.
        ValueError: for an option out of its range, or one that this source has no use for.
    """
    source, options = Path(source), options or Options()
    options.check_numbers()
    try:
        return _read(source, options)
    except OSError as error:
        what = (error.strerror or type(error).__name__).lower()
        raise CheckpointError(f"{error.filename or source}: {what}; name files that you may read") from error


def _read(source: Path, options: Options) -> GenerativeModel:
    if (source / "fdistill.json").is_file():
        raise CheckpointError(f"{source} was exported by fdistill: it is a teacher or student already, use it as it is")
    if (source / "model_index.json").is_file():
        if reads_text(source):
            from fdistill.io.importing.text_pipeline import read_text_pipeline

            used = {"num_steps", "guidance", "sigma_data", "resolution", "lora", "guidance_rescale"}
            options.check_used(source, "a text-to-image pipeline", used)
            return read_text_pipeline(source, options)
        options.check_used(source, "a pipeline", {"num_steps", "guidance", "sigma_data", "last_class_is_none"})
        return read_pipeline(source, options)
    if (source / "config.json").is_file():
        used = {"scheduler", "vae", "num_steps", "guidance", "sigma_data", "last_class_is_none"}
        options.check_used(source, "a network of diffusers", used)
        return read_network(source, options)
    if source.is_dir():
        said = what_lies_at(source)
        if said is not None:
            raise CheckpointError(said)
        found = [shown(name) for name in sorted(child.name for child in source.iterdir())[:5]]
        raise CheckpointError(
            f"{source} has no model_index.json or config.json: expected {_KNOWN}, got {found or 'an empty folder'}"
        )
    download = "check the path (nothing is downloaded: hf download NAME --local-dir FOLDER does)"
    file_size(source, f"expected {_KNOWN}; {download}")
    return _read_file(source, options)


def _read_file(source: Path, options: Options) -> GenerativeModel:
    if source.suffix == ".safetensors":
        options.check_used(source, "a file of tensors", {"config", "num_steps", "guidance", "sigma_data", "vae"})
        if options.config is None:
            raise CheckpointError(what_lies_at(source) or f"there is nothing at {source}: check the path")
        return read_configured(source, options.config, options)
    if source.suffix == ".pkl":
        from fdistill.io.importing.edm_pickle import read_edm

        options.check_used(source, "a pickle of EDM", {"num_steps", "guidance", "vae"})
        model = read_edm(source)
        sigmas = model.sigmas if options.num_steps is None else model.edm_grid(options.num_steps)
        decoder = None if options.vae is None else _decoder_of_edm2(source, options.vae, model.facts)
        scale = options.scale(model.denoiser, source)
        return dataclasses.replace(model, sigmas=sigmas, guidance=scale, decoder=decoder)
    if source.suffix == ".ckpt" and _is_ours(source):
        raise CheckpointError(f"{source} is a checkpoint of fdistill: a teacher or student already, use it as it is")
    said = what_lies_at(source)
    if said is not None:
        raise CheckpointError(f"{said}; import takes {_KNOWN}")
    if source.suffix in _PICKLES:
        raise CheckpointError(
            f"{source} is a pickle, which could run anything: convert it to safetensors where you trust it, and import "
            "that with --config"
        )
    raise CheckpointError(
        f"{source} is no model that is known here: expected {_KNOWN}, got a {source.suffix or 'file'}"
    )


def _is_ours(source: Path) -> bool:
    try:
        return RECORD in read_run_checkpoint(source)
    except CheckpointError:
        return False


def _decoder_of_edm2(source: Path, vae: Path, facts: dict[str, Any]) -> Decoder:
    """EDM2's latents are scale * raw + bias of what the VAE makes, by channel, in place of one scaling_factor."""
    if "latents_scale" not in facts:
        raise CheckpointError(f"{source} makes images, which no VAE decodes: leave --vae out")
    pairs = list(zip(facts["latents_scale"], facts["latents_bias"], strict=True))
    scaling = {
        "scaling_factor": 1.0,
        "latents_std": [1 / scale for scale, _ in pairs],
        "latents_mean": [-bias / scale for scale, bias in pairs],
    }
    return Decoder(vae, scaling)
