"""What an extractor consists of, for a fingerprint: its code, arguments and weights, wherever a module keeps them."""

import functools
import inspect
import types
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fdistill.core.fingerprints import fingerprint
from fdistill.core.weight_files import shown

_OF_EVERY_MODULE = vars(nn.Module()).keys() | {"_cache", "_keeps_features"}
_UNORDERED = "_use_default_values"  # a list that diffusers makes of a set: another one in every process
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_SAID_BY_REPR = (torch.dtype, torch.device, torch.memory_format, PurePath, Enum, complex, bytes, range, slice)


class Identity:
    """Collects plain values and tensors that tell one extractor from another.

    It sees registered and other tensors, numbers and texts, collections and objects of these, functions by their code
    and closures, and the source files of classes.

    Attributes:
        tensors: by where they were found.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._seen: dict[int, Any] = {}  # keeps what it has seen, so that no number is given to another object

    def of(self, value: Any, name: str) -> Any:
        """What json writes of a value.

        Args:
            value: a module, or anything that one keeps.
            name: where it was found.

        Raises:
            ValueError: for what cannot be seen, as a file or a generator.
        """
        if value is None or isinstance(value, str | bool | int | float):
            return [type(value).__name__, value]
        if isinstance(value, Tensor):
            self.tensors[name] = value
            return "tensor"
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
            return [value.dtype.str, value.shape, fingerprint(value.tobytes().hex())]
        if isinstance(value, _SAID_BY_REPR) or value is ... or value is NotImplemented:
            return repr(value)
        if isinstance(value, types.BuiltinFunctionType | np.ufunc):
            return [getattr(value, "__module__", ""), value.__name__]
        if isinstance(value, type):
            return [f"{value.__module__}.{value.__qualname__}", _source(value)]
        if id(value) in self._seen:
            return "seen"
        self._seen[id(value)] = value
        told = [type(value).__qualname__, self._parts(value, name)]
        if isinstance(value, Collection):  # whether equal ones are one object says nothing
            del self._seen[id(value)]
        return told

    def _parts(self, value: Any, name: str) -> Any:
        if isinstance(value, nn.Module):
            return self._module(value, name)
        if isinstance(value, Mapping):
            kept = {key: each for key, each in value.items() if key != _UNORDERED}
            return [[self.of(key, name), self.of(each, f"{name}.{key}")] for key, each in kept.items()]
        if isinstance(value, set | frozenset):
            return sorted(fingerprint(self.of(each, name)) for each in value)
        if isinstance(value, list | tuple):
            return self._all(value, name)
        if isinstance(value, functools.partial):
            return self._all([value.func, value.args, value.keywords], name)
        if isinstance(value, types.MethodType):
            return self._all([value.__func__, value.__self__], name)
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
            parts = [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
            return [value.__module__, value.__qualname__, _source(value), self._all(parts, name)]
        if isinstance(value, types.CodeType):
            return [value.co_code.hex(), value.co_names, self._all(value.co_consts, name)]
        if type(value).__module__ == "builtins" or not hasattr(value, "__dict__"):
            raise ValueError(
                "features are kept of an extractor that can be told from others: expected plain values, tensors, "
                f"functions and objects of them, got a {type(value).__name__} at {shown(name)}; leave feature_cache out"
            )
        return [self.of(type(value), name), self.of(vars(value), name)]

    def _module(self, module: nn.Module, name: str) -> Any:
        own = [cls for cls in type(module).__mro__ if cls.__module__.split(".")[0] not in ("torch", "builtins", "abc")]
        registered = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        self.tensors |= {f"{name}.{key}": tensor for key, tensor in registered.items()}
        told: list[Any] = [self._all(own or [type(module)], name)]
        if isinstance(module, torch.jit.ScriptModule):  # everything else lies in the compiled part
            told.append(getattr(module, "code", ""))
        else:
            kept = {key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE}
            hooks = {key: list(getattr(module, key).values()) for key in _HOOKS}
            told.append([[key, self.of(value, f"{name}.{key}")] for key, value in sorted((kept | hooks).items())])
        return [*told, [[key, self.of(child, f"{name}.{key}")] for key, child in module.named_children()]]

    def _all(self, values: Iterable[Any], name: str) -> list[Any]:
        return [self.of(value, f"{name}.{place}") for place, value in enumerate(values)]


def _source(defined: Any) -> str:
    """Of the file that it is in."""
    try:
        file = inspect.getsourcefile(defined)
        return "" if file is None else _file_fingerprint(file)
    except (TypeError, OSError, ValueError):  # of a notebook, or compiled
        return ""


@functools.cache
def _file_fingerprint(file: str) -> str:
    with open(file, encoding="utf-8") as opened:
        return fingerprint(opened.read())
