"""The bytes that torch wrote for a tensor's storage before it had zip archives, read without torch.load.

They are five pickles (a magic number, a version, facts about the machine, a reference to the storage, the names of all
storages), then the number of elements and the elements.
"""

import io
from typing import Any

import torch
from torch import Tensor

from fdistill.core.weight_files import shown
from fdistill.io.importing.edm_machine import Recipe, Refused, run

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}


def elements_of(data: bytes) -> Tensor:
    """The elements of a storage, a tensor [N] of its own memory on the CPU, wherever they were when written.

    Args:
        data: what torch.storage._load_from_bytes would get.

    Raises:
        ValueError: where they are no storage of numbers.
    """
    stream = io.BytesIO(data)
    magic, version, machine = (run(stream, _nothing) for _ in range(3))
    if magic != _MAGIC or version != 1001 or type(machine) is not dict or machine.get("little_endian") is not True:
        raise ValueError("expected a storage of torch's format 1001, little-endian")
    dtype = run(stream, _storage_type, _referred)
    if not isinstance(dtype, torch.dtype):
        raise ValueError("expected a reference to one whole storage")
    run(stream, _nothing)
    length = stream.read(8)
    count, content = int.from_bytes(length, "little"), bytearray(stream.read())
    if len(length) != 8 or len(content) != count * dtype.itemsize:
        raise ValueError(f"expected {count} elements of {dtype}, got {len(content)} bytes")
    return torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _nothing(module: str, name: str) -> Any:
    raise Refused(f"the name '{shown(f'{module}.{name}')}' in a storage")


def _storage_type(module: str, name: str) -> Recipe:
    if module != "torch" or name not in _DTYPES:
        _nothing(module, name)
    return Recipe(lambda: _DTYPES[name])


def _referred(reference: Any) -> torch.dtype:
    """The type of the elements, from ("storage", its class, its name, its device, its length, no view)."""
    if type(reference) is not tuple or len(reference) != 6 or reference[0] != "storage" or reference[5] is not None:
        raise ValueError("expected a reference to one whole storage")
    return reference[1].answer() if isinstance(reference[1], Recipe) else _nothing("", str(type(reference[1])))
