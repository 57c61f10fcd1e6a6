"""A .safetensors file beside a YAML file that says what its tensors are: network, preconditioning, sampling."""

from pathlib import Path
from typing import Any

import yaml

from fdistill.decoders import Decoder
from fdistill.denoiser import Denoiser
from fdistill.described import Described, public_path
from fdistill.generative_model import GenerativeModel
from fdistill.importing.options import NUM_STEPS, Options
from fdistill.networks import Network
from fdistill.preconditioning import Preconditioning
from fdistill.weight_files import CheckpointError, load_weights, read_safetensors

_SAMPLING = {"num_steps": NUM_STEPS, "sigma_min": 0.002, "sigma_max": 80.0, "guidance": 1.0}
_FORM = "expected a denoiser (or model) section with network and preconditioning, each class_path and init_args"


def read_configured(source: Path, options: Options) -> GenerativeModel:
    """The teacher of a .safetensors file, whose tensors are those of the denoiser or of its network alone.

    The configuration is that of a run (`model:` of TeacherModule), or a `denoiser:` section with network and
    preconditioning and, where EDM's grid from 80 to 0.002 does not suit, a `sampling:` section with num_steps,
    sigma_min, sigma_max, guidance.

    Raises:
        CheckpointError: if the configuration is missing or describes nothing, or the tensors do not fit it.
    """
    if options.config is None:
        raise CheckpointError(f"{source} holds tensors alone: say what they are by --config FILE.yaml ({_FORM})")
    network, preconditioning, sampling = _described(options.config)
    denoiser = Denoiser(network, preconditioning)
    weights = read_safetensors(source, "save it again")
    whole = any(name.startswith("network.") for name in weights)
    load_weights(denoiser if whole else network, weights, source)
    sampling |= {} if options.num_steps is None else {"num_steps": options.num_steps}
    sampling["guidance"] = options._replace(guidance=options.guidance or sampling["guidance"]).scale(denoiser, source)
    facts: dict[str, Any] = {"imported_from": source.name, "format": "safetensors"}
    if options.sigma_data is not None:
        facts["sigma_data"] = options.sigma_data
    try:
        model = GenerativeModel.teacher(denoiser, **sampling, facts=facts)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{options.config}: {error}") from error
    model.decoder = None if options.vae is None else Decoder(options.vae)
    return model


def _described(file: Path) -> tuple[Network, Preconditioning, dict[str, Any]]:
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
    given = content.get("sampling", {name: section[name] for name in _SAMPLING if name in section})
    if not isinstance(given, dict) or given.keys() - _SAMPLING.keys():
        raise CheckpointError(f"{file}: sampling takes {', '.join(_SAMPLING)}, got {given}")
    try:
        network = Network.from_spec(_full(section["network"]))
        return network, Preconditioning.from_spec(_full(section["preconditioning"])), {**_SAMPLING, **given}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _full(value: Any) -> Any:
    """The description with the class paths that records have: bare names completed, init_args always there."""
    if isinstance(value, list):
        return [_full(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {name: _full(item) for name, item in value.items()}
    path = value["class_path"]
    known = [public_path(cls) for cls in _subclasses(Described)]
    found = [full for full in known if full.rsplit(".", 1)[-1] == path]
    arguments = {name: _full(item) for name, item in (value.get("init_args") or {}).items()}
    return {"class_path": found[0] if found else path, "init_args": arguments}


def _subclasses(cls: type) -> list[type]:
    return [found for sub in cls.__subclasses__() for found in [sub, *_subclasses(sub)]]
