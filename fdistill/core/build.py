"""Modules built for weights from outside: one that the weights do not fill is refused before it takes memory."""

import inspect
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from fdistill.core.weight_files import BUILD_ERRORS, CheckpointError, brief, check_fits, reason, shown

_Module = TypeVar("_Module", bound=torch.nn.Module)


def build_with_weights(
    build: Callable[[], _Module],
    weights: dict[str, torch.Tensor],
    source: Path | str,
    fitted: Callable[[_Module], dict[str, torch.Tensor]] | None = None,
) -> _Module:
    """The module that `build` makes, with these weights; one that they do not fill is refused before it takes memory.

    Args:
        build: makes the module; called twice, first for its shapes alone.
        weights: of the module.
        source: for the message.
        fitted: the weights under the module's own names, from the module of shapes alone.

    Raises:
        CheckpointError: if a tensor is missing, left over, or has another shape.
    """
    with torch.device("meta"):
        plan = build()
    weights = weights if fitted is None else fitted(plan)
    check_fits(plan, weights, source)
    del plan
    module = build()
    module.load_state_dict(weights)
    return module


def known_config(cls: type[torch.nn.Module], config: dict[str, Any], source: Path) -> dict[str, Any]:
    """The part of a configuration that a class of this diffusers takes; a warning names what asks for nothing.

    Args:
        cls: of diffusers.
        config: of its arguments.
        source: for messages.

    Raises:
        CheckpointError: for an argument that it does not take, and that is not off or empty.
    """
    takes = inspect.signature(cls.__init__).parameters
    unknown = {name: value for name, value in config.items() if name not in takes}
    asked = [f"{brief(name)} = {brief(value)}" for name, value in unknown.items() if value]
    if asked:
        raise CheckpointError(
            f"{source}: diffusers builds no {cls.__name__} with {'; '.join(asked[:3])}: expected keys that diffusers "
            f"{version('diffusers')} knows; install the one that wrote it, or delete them where they change nothing"
        )
    if unknown:
        names = ", ".join(f"{shown(name)} = {brief(value)}" for name, value in unknown.items())
        warnings.warn(f"{source}: ignored {shown(names)}, which this diffusers does not know", stacklevel=2)
    return {name: value for name, value in config.items() if name in takes}


def build_stock(cls: type[_Module], config: dict[str, Any]) -> _Module:
    """A network of diffusers from its configuration.

    Raises:
        ValueError: if the class takes no such argument.
    """
    try:
        return cls(**config)
    except BUILD_ERRORS as error:
        raise ValueError(f"diffusers builds no {cls.__name__} of this configuration: {reason(error)}") from error
