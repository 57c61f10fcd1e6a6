"""A .safetensors file beside a YAML file that says what its tensors are: network, preconditioning, sampling."""

import functools
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fdistill.core.build import build_with_weights
from fdistill.core.spec import Described, Spec, public_path, subclasses
from fdistill.core.weight_files import (
    CheckpointError,
    as_one_line,
    brief,
    check_finite_weights,
    check_one_network,
    checked_number,
    file_size,
    read_safetensors,
    reason,
)
from fdistill.core.weight_names import unwrapped
from fdistill.core.yaml_files import read_yaml
from fdistill.io.importing.options import MOST_STEPS, NUM_STEPS, Options
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import Network, StockUNet
from fdistill.models.vae import Decoder
from fdistill.sampling import Sampler
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import SamplingGrid
from fdistill.theory.preconditioning import Preconditioning

_SAMPLING = {"num_steps": NUM_STEPS, "sigma_min": 0.002, "sigma_max": 80.0, "guidance": 1.0}
_PARTS = {"sampler": Sampler, "grid": SamplingGrid}
_LARGEST = 2**17  # bytes of a configuration
_FORM = "expected a denoiser (or model) section with network and preconditioning, each class_path and init_args"


def read_configured(source: Path, config: Path, options: Options) -> GenerativeModel:
    """The teacher of a .safetensors file, whose tensors are those of the denoiser or of its network alone.

    The configuration is that of a run (`model:` of TeacherModule), or a `denoiser:` section with network and
    preconditioning and, where Heun on EDM's grid from 80 to 0.002 does not suit, a `sampling:` section with num_steps,
    sigma_min, sigma_max, guidance, sampler, grid.

    Raises:
        CheckpointError: if the configuration is missing or describes nothing, or the tensors do not fit it.
    """
    spec, preconditioning, sampling, facts = _described(config)
    weights = read_safetensors(source, "save it again")
    check_one_network(weights, source)
    bare = unwrapped(weights)
    whole = any(name.startswith("network.") for name in bare)

    def build() -> nn.Module:
        network = Network.from_spec(spec)
        return Denoiser(network, preconditioning) if whole else network

    with as_one_line(config):
        module = build_with_weights(build, weights, source, functools.partial(_checked, [weights, bare], source))
    denoiser = module if whole else Denoiser(module, preconditioning)
    if options.num_steps is not None:
        sampling |= {"num_steps": options.num_steps, "sigmas": None}
    asked = sampling["guidance"] if options.guidance is None else options.guidance
    sampling["guidance"] = options._replace(guidance=asked).scale(denoiser, source)
    facts |= {"imported_from": source.name, "format": "safetensors"}
    if options.sigma_data is not None:
        facts["sigma_data"] = options.sigma_data
    with as_one_line(config):
        model = GenerativeModel.teacher(denoiser, **sampling, facts=facts)
    model.decoder = None if options.vae is None else Decoder(options.vae)
    return model


def _checked(named: list[dict[str, Tensor]], source: Path, plan: nn.Module) -> dict[str, Tensor]:
    """The weights under those of their names that fit, finite but for rows of "no class" that nobody has trained."""
    weights = max(named, key=lambda given: len(given.keys() & plan.state_dict().keys()))
    floating = {name for name, value in plan.state_dict().items() if value.is_floating_point()}
    rows = {
        f"{place}.{StockUNet.CLASSES}".removeprefix(".")
        for place, part in plan.named_modules()
        if isinstance(part, StockUNet) and not part.knows_no_class
    }
    check_finite_weights({name: value for name, value in weights.items() if name in floating}, source, rows)
    return weights


def _described(file: Path) -> tuple[Spec, Preconditioning, dict[str, Any], dict[str, Any]]:
    """What the file says: the network's description, preconditioning, how it is sampled, and facts."""
    content = _read_yaml(file)
    section = content.get("denoiser", content.get("model")) if isinstance(content, dict) else None
    if isinstance(section, dict) and "init_args" in section:
        section = section["init_args"]
    if not isinstance(section, dict) or not {"network", "preconditioning"} <= section.keys():
        raise CheckpointError(f"{file} describes no denoiser: {_FORM}")
    known = [*_SAMPLING, *_PARTS]
    given = content.get("sampling", {name: section[name] for name in known if name in section})
    if not isinstance(given, dict) or given.keys() - set(known):
        raise CheckpointError(f"{file}: sampling takes {', '.join(known)}, got {brief(given)}")
    with as_one_line(file):
        facts = {name: checked_number(section[name], name, 1e-6, 1e6) for name in ("sigma_data",) if name in section}
        numbers = _SAMPLING | {name: value for name, value in given.items() if name in _SAMPLING}
        checked_number(numbers["num_steps"], "num_steps", 1, MOST_STEPS, whole=True)
        for name, low in (("sigma_min", 0), ("sigma_max", 0), ("guidance", -1e6)):
            checked_number(numbers[name], name, low, 1e6)
        classes = {path.rsplit(".", 1)[-1]: path for path in map(public_path, subclasses(Described))}
        preconditioning = Preconditioning.from_spec(_full(section["preconditioning"], classes))
        parts: dict[str, Any]
        parts = {n: cls.from_spec(_full(given[n], classes)) for n, cls in _PARTS.items() if given.get(n) is not None}
        grid = parts["grid"].levels() if "grid" in parts else None
        spec = _full(section["network"], classes)
    return spec, preconditioning, {**numbers, "sampler": parts.get("sampler"), "sigmas": grid}, facts


def _read_yaml(file: Path) -> Any:
    """Plain values of a file.

    Raises:
        CheckpointError: if it is missing, broken, or larger than a configuration.
    """
    size = file_size(file, f"{_FORM}; check the path")
    if size > _LARGEST:
        raise CheckpointError(f"{file}: a configuration has at most {_LARGEST:,} bytes, got {size:,}")
    try:
        return read_yaml(file)
    except ValueError as error:
        raise CheckpointError(reason(error)) from error


def _full(value: Any, classes: dict[str, str]) -> Any:
    """The description with the class paths that records have: bare names completed, init_args always there.

    Args:
        value: the description.
        classes: the full name of each bare one.
    """
    if isinstance(value, list):
        return [_full(item, classes) for item in value]
    if isinstance(value, str) and value in classes:
        return {"class_path": classes[value], "init_args": {}}
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {name: _full(item, classes) for name, item in value.items()}
    given = value.get("init_args") or {}
    if not isinstance(value["class_path"], str) or not isinstance(given, dict):
        raise ValueError(f"a class has a class_path and init_args by name: got {brief(value)}")
    arguments = {name: _full(item, classes) for name, item in given.items()}
    return {"class_path": classes.get(value["class_path"], value["class_path"]), "init_args": arguments}
