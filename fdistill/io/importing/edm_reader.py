"""The pickles of EDM and EDM2 (network-snapshot-*.pkl), by an Unpickler that knows a short list of names.

`find_class` answers each name with a class or function of this file, or with an immutable type of torch; all others are
refused. So no source text and no call in a file is executed. Objects of EDM and modules of torch become `Inert`.
"""

import io
import mmap
import pickle
import pickletools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdistill.core.weight_files import BUILD_ERRORS, CheckpointError, as_one_line, file_size, reason, shown

_LARGEST_PLACE = 2**24  # in the memo, which Unpickler allocates up to it


class Inert:
    """An object of a class that does not exist here; it only holds its attributes.

    Attributes:
        state: its attributes.
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        """Args:
        state: see the attribute.
        """
        self.__setstate__({} if state is None else state)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise _Refused("an object whose state is no dict")
        self.state = state

    @property
    def name(self) -> str:
        """Of its class, e.g. "EDMPrecond"."""
        return type(self).__name__


def read_snapshot(path: Path | str) -> dict[str, Any]:
    """The dictionary that a snapshot holds: its networks are `Inert`, the rest plain values and tensors on the CPU.

    Args:
        path: a .pkl file that EDM or EDM2 wrote; it holds "ema" and, with EDM2, "encoder".

    Raises:
        CheckpointError: if the file is missing, truncated, no such pickle, or names anything that would have to be
            imported or called.
    """
    path = Path(path)
    try:
        size = file_size(path, "expected a .pkl snapshot of EDM or EDM2; check the path")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            stream: Any = content  # a file, though typeshed does not say so of a memory map
            for opcode, argument, _ in pickletools.genops(stream):  # which finds what is cut off without allocating it
                far = "PUT" in opcode.name and not 0 <= int(argument or 0) < _LARGEST_PLACE
                if far or opcode.name.startswith("EXT"):  # an extension is whatever its registry says
                    raise _Refused(f"the opcode {opcode.name} {argument}")
            content.seek(0)
            snapshot = _Unpickler(content, size).load()
    except _Refused as error:
        raise CheckpointError(
            f"{path}: a snapshot of EDM holds weights, plain values and EDM's own classes, none of them executed: got "
            f"{error}; take the published file"
        ) from error
    except CheckpointError:
        raise
    except (pickle.UnpicklingError, EOFError, *BUILD_ERRORS) as error:
        raise CheckpointError(
            f"{path} is truncated or no pickle that EDM wrote ({reason(error)}): download it again"
        ) from error
    if not isinstance(snapshot, dict) or not isinstance(snapshot.get("ema"), Inert):
        raise CheckpointError(f"{path} is no snapshot of EDM: expected a dictionary with a network under 'ema'")
    return snapshot


def weights_of(module: Inert, source: Path | str = "the snapshot") -> dict[str, Tensor]:
    """The flat state dict of a network, bit for bit: parameters and persistent buffers under their dotted names.

    Args:
        module: an inert torch.nn.Module.
        source: for the message.

    Raises:
        CheckpointError: where the tree of modules is none.
    """
    weights: dict[str, Tensor] = {}
    waiting, seen = [("", module)], set()
    with as_one_line(f"{source}: the network of the snapshot is no tree of modules"):
        while waiting:
            prefix, current = waiting.pop()
            if not isinstance(current, Inert) or id(current) in seen:  # a shared module could double at every level
                raise ValueError(f"see {prefix or 'its root'}")
            seen.add(id(current))
            hidden = current.state.get("_non_persistent_buffers_set", ())
            buffers = {name: each for name, each in current.state.get("_buffers", {}).items() if name not in hidden}
            tensors = {**current.state.get("_parameters", {}), **buffers}
            weights |= {f"{prefix}{name}": value for name, value in tensors.items() if isinstance(value, Tensor)}
            below = current.state.get("_modules", {})
            waiting += [(f"{prefix}{name}.", each) for name, each in below.items() if each is not None]
    return weights


class _Refused(pickle.UnpicklingError):
    """Something in the pickle that is never read; the message says what."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: Any, size: int) -> None:
        super().__init__(content)
        self._left = size  # bytes; the same ones, recalled from the memo again and again, would fill the memory

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "torch.storage._load_from_bytes":
            return _Function(self._elements)
        if full in _KNOWN:
            return _KNOWN[full]
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return type(name, (Inert,), {})
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise _Refused(f"the name '{shown(full)}'")

    def _elements(self, data: bytes) -> Tensor:
        """The elements of a storage, [N] on the CPU, wherever they were when written."""
        self._left -= len(data)
        if self._left < 0:
            raise _Refused("storages larger than the file")
        try:
            with warnings.catch_warnings(action="ignore"):  # that this form of a storage is old
                storage: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                return torch.empty(0, dtype=storage.dtype).set_(storage)
        except Exception as error:  # torch's reader raises whatever the bytes lead it to
            raise _Refused(f"an unreadable storage ({reason(error)})") from error


class _Function:
    """Answers a call in the pickle; nothing there can change it."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    def __call__(self, *arguments: Any) -> Any:
        return self._answer(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise _Refused("a state for a function")


class _Dict(dict[Any, Any]):
    """An OrderedDict or EasyDict, on whose attributes no weight depends."""

    def __setstate__(self, _: Any) -> None:
        pass


class _Dtype:
    def __init__(self, code: str, *_flags: Any) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "fiub":
            raise _Refused(f"the numpy dtype {self.dtype}")

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """A numpy array of numbers.

    Attributes:
        values: the numbers.
    """

    def __init__(self, *_empty: Any) -> None:
        """Args: what makes the empty array that numpy's own recipe begins with."""
        self.values = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, data = state
        self.values = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if column_major else "C")


def _array(data: Any, dtype: _Dtype, shape: Any, order: str) -> Array:
    array = Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _persistent(meta: Any) -> Inert:
    """An object of torch_utils.persistence; the source text that travels with it is not read."""
    return type(meta["class_name"], (Inert,), {})(meta["state"])


def _tensor(elements: Tensor, offset: int, size: Any, stride: Any, *_flags: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2; as_strided refuses what is outside of the elements."""
    return torch.as_strided(elements, size, stride, offset)


_OF_NUMPY = {
    "multiarray.scalar": _Function(lambda dtype, data: np.frombuffer(data, dtype.dtype)[0].item()),
    "multiarray._reconstruct": Array,
    "numeric._frombuffer": _Function(_array),
}
_KNOWN: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _Function(_persistent),
    "dnnlib.util.EasyDict": _Dict,
    "collections.OrderedDict": _Dict,
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch._utils._rebuild_parameter": _Function(lambda tensor, *_: tensor),
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": Array,
    **{f"numpy.{core}.{name}": answer for core in ("core", "_core") for name, answer in _OF_NUMPY.items()},
}
