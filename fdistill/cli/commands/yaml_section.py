"""Data and feature extractors that a command is given: a section of a YAML file, or what a model remembers."""

import inspect
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fdistill.core.presets import configuration
from fdistill.core.spec import public_path, subclasses
from fdistill.core.yaml_files import read_yaml
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.features import FeatureExtractor

_PACKAGES = {"data": "fdistill.data", "features": "fdistill.evaluation.features"}


def data_of_file(path: str) -> GenerativeDataModule:
    """The data that the data section of a YAML file describes.

    Raises:
        ValueError: with one line that says what is wrong with the file.
    """
    return GenerativeDataModule.from_spec(_section(path, "data"))


def features_of_file(path: str, place: torch.device) -> FeatureExtractor:
    """The extractor that the features section of a YAML file describes, on a device.

    It imports nothing, so a file cannot run code of its choice.

    Raises:
        ValueError: with one line that says what is wrong with the file.
    """
    spec = _section(path, "features")
    known = {public_path(c): c for c in subclasses(FeatureExtractor) if not inspect.isabstract(c)}
    name, arguments = spec["class_path"], spec["init_args"]
    if name not in known:
        raise ValueError(
            f"class_path names an imported feature extractor: expected one of {sorted(known)}, got {name!r}; "
            "import the module that defines it first (--import MODULE)"
        )
    try:
        extractor = known[name](**arguments)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{name} does not take these arguments: {error}") from error
    # metrics need float64 where the features are, which mps lacks
    return extractor if place.type == "mps" else extractor.to(place)


def _section(given: str, name: str) -> dict[str, Any]:
    """The section of a YAML file that describes an object; a class without a dot is one of ours of that kind."""
    try:
        content = read_yaml(configuration(given))
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {given} to read the {name} section from: check the path") from error
    try:
        sections: Any = OmegaConf.to_container(OmegaConf.create(content), resolve=True)
        spec: Any = sections[name]
        path = spec["class_path"]
        return {
            "class_path": path if "." in path else f"{_PACKAGES[name]}.{path}",
            "init_args": spec.get("init_args") or {},
        }
    except OmegaConfBaseException as error:
        raise ValueError(f"{given} has a reference that does not resolve: {str(error).splitlines()[0]}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{given} is no YAML file with a {name} section of class_path and init_args") from error
