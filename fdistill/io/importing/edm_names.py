"""The global names that a pickle of EDM or EDM2 may use, and the function of ours that answers each; no others exist.

Tensors and numpy values are rebuilt from their bytes after a check of every argument; the objects of EDM's persistence
and of torch.nn become `Inert`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdistill.core.weight_files import shown
from fdistill.io.importing.edm_machine import Buildable, Recipe, Refused
from fdistill.io.importing.edm_storage import elements_of


class Inert(Buildable):
    """An object of the pickle that only holds its state: nothing of its class exists here.

    Attributes:
        name: of its class, e.g. "EDMPrecond".
        state: its attributes.
    """

    def __init__(self, name: str, state: dict[str, Any] | None = None) -> None:
        """Args:
        name: see the attribute.
        state: see the attribute; None until `build`.
        """
        self.name, self.state = name, {} if state is None else state

    def build(self, state: Any) -> None:
        """See `Buildable`."""
        _check(type(state) is dict and not self.state, f"one dict as the state of {self.name}")
        self.state = state


class Names:
    """What the global names of one file stand for."""

    def __init__(self, size: int) -> None:
        """Args:
        size: bytes of the file, of which its storages together hold no more.
        """
        self._left = size

    def __call__(self, module: str, name: str) -> Any:
        """The recipe or the plain value that stands for ``module.name``.

        Raises:
            Refused: for every name that is not listed here.
        """
        full = f"{module}.{name}"
        if full == "torch.storage._load_from_bytes":
            return Recipe(self._storage)
        if full in _RECIPES:
            return _RECIPES[full]
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return Recipe(lambda: Inert(name))
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise Refused(f"the name '{shown(full)}'")

    def _storage(self, data: Any) -> "_Storage":
        _check(type(data) is bytes, "the bytes of a storage")
        self._left -= len(data)  # the same bytes, recalled from the memo again and again, would fill the memory
        _check(self._left >= 0, "storages no larger than the file")
        return _Storage(elements_of(data))


def _check(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"expected {rule}")


def _persistent(meta: Any) -> Inert:
    """An object of torch_utils.persistence; the source text that travels with it is not read."""
    _check(type(meta) is dict and meta.get("type") == "class", "the description of a persistent object")
    name, state = meta.get("class_name"), meta.get("state")
    _check(type(name) is str and name.isidentifier() and type(state) in (dict, type(None)), "a class name and a state")
    return Inert(name, state)


@dataclass(frozen=True)
class _Storage:
    elements: Tensor


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_flags: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2; the flags say what autograd needs."""
    _check(isinstance(storage, _Storage) and _counts((offset,)) and _counts(size) and _counts(stride), "a tensor")
    _check(len(size) == len(stride) <= 8, "one stride for each axis")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    _check(0 < math.prod(size) <= len(storage.elements) and last < len(storage.elements), "a tensor inside its storage")
    return storage.elements.as_strided(size, stride, offset)


def _counts(values: Any) -> bool:
    return type(values) is tuple and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _parameter(tensor: Any, *_flags: Any) -> Tensor:
    _check(isinstance(tensor, Tensor), "a parameter around a tensor")
    return tensor


def _size(values: Any) -> tuple[int, ...]:
    _check(_counts(values), "a size of integers")
    return values


def _device(*_where: Any) -> str:
    return "cpu"


def _ordered(*pairs: Any) -> dict[Any, Any]:
    _check(not pairs, "an OrderedDict whose items follow")
    return {}


class _Dtype(Buildable):
    """A numpy dtype of numbers."""

    def __init__(self, code: Any, *_flags: Any) -> None:
        _check(
            type(code) is str and code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"),
            "a dtype of numbers",
        )
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """The byte order."""
        _check(type(state) is tuple and len(state) > 1 and state[1] in ("<", ">", "|"), "the state of a dtype")
        self.dtype = self.dtype.newbyteorder(state[1])


def _scalar(dtype: Any, data: Any) -> int | float | bool:
    _check(isinstance(dtype, _Dtype) and type(data) is bytes and len(data) == dtype.dtype.itemsize, "a numpy scalar")
    return np.frombuffer(data, dtype.dtype)[0].item()


class Array(Buildable):
    """A numpy array of numbers.

    Attributes:
        values: the numbers.
    """

    def __init__(self, *_empty: Any) -> None:
        """Args: what makes the empty array that numpy's own recipe begins with."""
        self.values = np.empty(0)

    def build(self, state: Any) -> None:
        """See `Buildable`."""
        _check(type(state) is tuple and len(state) == 5, "the state of an array")
        _, shape, dtype, column_major, data = state
        _check(type(column_major) is bool, "an order")
        self._fill(data, dtype, shape, "F" if column_major else "C")

    def _fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        _check(isinstance(dtype, _Dtype) and type(data) in (bytes, bytearray), "an array of numbers")
        _check(_counts(shape) and order in ("C", "F"), "a shape and an order")
        self.values = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array._fill(data, dtype, shape, order)
    return array


def _class_only(*_arguments: Any) -> None:
    raise ValueError("expected numpy.ndarray as an argument only")


_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
}

_OF_NUMPY: dict[str, Callable[..., Any]] = {
    "multiarray.scalar": _scalar,
    "multiarray._reconstruct": Array,
    "numeric._frombuffer": _array_from_buffer,
}
_RECIPES = {
    "torch_utils.persistence._reconstruct_persistent_obj": Recipe(_persistent),
    "dnnlib.util.EasyDict": Recipe(_ordered),
    "collections.OrderedDict": Recipe(_ordered),
    "torch._utils._rebuild_tensor_v2": Recipe(_tensor),
    "torch._utils._rebuild_parameter": Recipe(_parameter),
    "torch.Size": Recipe(_size),
    "torch.device": Recipe(_device),
    "numpy.dtype": Recipe(_Dtype),
    "numpy.ndarray": Recipe(_class_only),
    **{f"numpy.{core}.{name}": Recipe(answer) for core in ("core", "_core") for name, answer in _OF_NUMPY.items()},
}
