"""A .safetensors file beside a YAML file that says what its tensors are: network, preconditioning, sampling."""

from pathlib import Path
from typing import Any

import yaml

from fdistill.decoders import Decoder
from fdistill.denoiser import Denoiser
from fdistill.described import Described, public_path
from fdistill.generative_model import GenerativeModel
from fdistill.grids import SamplingGrid
from fdistill.importing.options import NUM_STEPS, Options
from fdistill.networks import Network
from fdistill.preconditioning import Preconditioning
from fdistill.samplers import Sampler
from fdistill.weight_files import CheckpointError, load_weights, read_safetensors

_SAMPLING = {"num_steps": NUM_STEPS, "sigma_min": 0.002, "sigma_max": 80.0, "guidance": 1.0}
_PARTS = {"sampler": Sampler, "grid": SamplingGrid}
_FORM = "expected a denoiser (or model) section with network and preconditioning, each class_path and init_args"


def read_configured(source: Path, options: Options) -> GenerativeModel:
    """The teacher of a .safetensors file, whose tensors are those of the denoiser or of its network alone.

    The configuration is that of a run (`model:` of TeacherModule), or a `denoiser:` section with network and
    preconditioning and, where Heun on EDM's grid from 80 to 0.002 does not suit, a `sampling:` section with num_steps,
    sigma_min, sigma_max, guidance, sampler, grid.

    Raises:
        CheckpointError: if the configuration is missing or describes nothing, or the tensors do not fit it.
    """
    if options.config is None:
        raise CheckpointError(f"{source} holds tensors alone: say what they are by --config FILE.yaml ({_FORM})")
    network, preconditioning, sampling, facts = _described(options.config)
    denoiser = Denoiser(network, preconditioning)
    weights = read_safetensors(source, "save it again")
    whole = any(name.startswith("network.") for name in weights)
    load_weights(denoiser if whole else network, weights, source)
    if options.num_steps is not None:
        sampling |= {"num_steps": options.num_steps, "sigmas": None}
    asked = sampling["guidance"] if options.guidance is None else options.guidance
    sampling["guidance"] = options._replace(guidance=asked).scale(denoiser, source)
    facts |= {"imported_from": source.name, "format": "safetensors"}
    if options.sigma_data is not None:
        facts["sigma_data"] = options.sigma_data
    try:
        model = GenerativeModel.teacher(denoiser, **sampling, facts=facts)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{options.config}: {error}") from error
    model.decoder = None if options.vae is None else Decoder(options.vae)
    return model


def _described(file: Path) -> tuple[Network, Preconditioning, dict[str, Any], dict[str, Any]]:
    """What the file says: the denoiser's parts, how it is sampled, and facts."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {file}: {_FORM}; check the path") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file} is no readable YAML: {' '.join(str(error).split())}") from error
    section = content.get("denoiser", content.get("model")) if isinstance(content, dict) else None
    if isinstance(section, dict) and "init_args" in section:
        section = section["init_args"]
    if not isinstance(section, dict) or not {"network", "preconditioning"} <= section.keys():
        raise CheckpointError(f"{file} describes no denoiser: {_FORM}")
    known = [*_SAMPLING, *_PARTS]
    given = content.get("sampling", {name: section[name] for name in known if name in section})
    if not isinstance(given, dict) or given.keys() - set(known):
        raise CheckpointError(f"{file}: sampling takes {', '.join(known)}, got {given}")
    facts = {"sigma_data": section["sigma_data"]} if "sigma_data" in section else {}
    try:
        network = Network.from_spec(_full(section["network"]))
        preconditioning = Preconditioning.from_spec(_full(section["preconditioning"]))
        parts = {n: cls.from_spec(_full(given[n])) for n, cls in _PARTS.items() if given.get(n) is not None}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    numbers = _SAMPLING | {name: value for name, value in given.items() if name in _SAMPLING}
    grid = parts["grid"].levels() if "grid" in parts else None
    return network, preconditioning, {**numbers, "sampler": parts.get("sampler"), "sigmas": grid}, facts


def _full(value: Any) -> Any:
    """The description with the class paths that records have: bare names completed, init_args always there."""
    if isinstance(value, list):
        return [_full(item) for item in value]
    known = {path.rsplit(".", 1)[-1]: path for path in map(public_path, _subclasses(Described))}
    if isinstance(value, str) and value in known:
        return {"class_path": known[value], "init_args": {}}
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {name: _full(item) for name, item in value.items()}
    arguments = {name: _full(item) for name, item in (value.get("init_args") or {}).items()}
    return {"class_path": known.get(value["class_path"], value["class_path"]), "init_args": arguments}


def _subclasses(cls: type) -> list[type]:
    return [found for sub in cls.__subclasses__() for found in [sub, *_subclasses(sub)]]
