"""Networks whose parameters have a shape and no numbers (torch's meta device), until somebody gives them some."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built inside have no numbers in their parameters: a large network costs one parameter at a time.

    Buffers are computed and weights from files are checked as ever, and then dropped.
    """
    hook = register_module_parameter_registration_hook(  # what it returns is registered, though torch's stub says None
        lambda module, name, parameter: _bare(parameter)  # type: ignore[arg-type]
    )
    try:
        with loading_drops():
            yield
    finally:
        hook.remove()


@contextmanager
def loading_drops() -> Iterator[None]:
    """Inside, weights that are loaded where there is no room for them are not warned of, one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        yield


def drop_weights(module: nn.Module) -> None:
    """Leave only the shapes of a module's parameters, in place."""
    _replace(module, _bare)


def make_room(module: nn.Module, device: torch.device) -> None:
    """Memory on the device, of no particular content, for the parameters that have none; in place."""

    def filled(parameter: nn.Parameter) -> nn.Parameter:
        if not parameter.is_meta:
            return parameter
        return nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)

    _replace(module, filled)


def _bare(parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


def _replace(module: nn.Module, change: Callable[[nn.Parameter], nn.Parameter | None]) -> None:
    changed: dict[int, tuple[nn.Parameter, nn.Parameter | None]] = {}  # what several modules share they go on sharing
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) not in changed:
                changed[id(parameter)] = parameter, change(parameter)
            setattr(part, name, changed[id(parameter)][1])
