"""Features of real samples kept on disk from one start to the next: found again by all that they depend on."""

import dataclasses
import inspect
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fdistill.core.atomic_files import atomic_write
from fdistill.core.fingerprints import fingerprint
from fdistill.core.spec import Described
from fdistill.core.weight_files import shown
from fdistill.models.vae import Decoder

_FORMAT = 4  # raise it where the same extractor comes to give other features of the same samples
_OF_EVERY_MODULE = vars(nn.Module())
_REMEDY = "remove it, and it is made again"


def user_cache() -> Path:
    """Folder of learned extractors where nobody named one: $XDG_CACHE_HOME/fdistill, or ~/.cache/fdistill.

    As the XDG base directory specification says, a relative $XDG_CACHE_HOME does not count.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "fdistill"


class FeatureCache:
    """Tensors in safetensors files that are named by a fingerprint of what they were computed from.

    It covers the samples; the extractor's class and arguments (`Described`) and all its weights; and what rounding
    depends on: torch, device, number of threads, TF32. So what is read is what would have been computed, bit for bit
    where computing is deterministic. Of code it sees the classes', not that of functions which they call.

    Args:
        folder: is made where it is not there; files that nobody reads any more are the user's to remove.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def key(self, what: str, extractor: nn.Module, samples: Mapping[str, Tensor | None], *settings: Any) -> str:
        """The name of what `extractor`, as it is, makes of these samples.

        Args:
            what: kind of what is kept.
            extractor: a module.
            samples: by name.
            settings: what else it depends on, of the kinds that `plain_form` takes.

        Raises:
            ValueError: in one line, as `plain_form`.
        """
        device = next((tensor.device for tensor in extractor.buffers()), torch.device("cpu"))
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        rounding = [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_default_dtype()]
        machine = [torch.__version__, place, torch.get_num_threads(), *map(str, rounding)]
        tensors = {f"samples.{name}": value for name, value in samples.items() if value is not None}
        parts = [plain_form(extractor, "extractor", tensors), plain_form(settings, "settings", tensors)]
        return f"{what}-{fingerprint([_FORMAT, what, machine, parts], tensors, 64)}"

    def read(self, key: str) -> dict[str, Tensor] | None:
        """What is kept under a key, on the CPU; None where nothing is.

        Raises:
            ValueError: in one line, where the file is damaged.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} keeps features and cannot be read: {_REMEDY}") from error
        if header != {"key": key, "content": fingerprint(key, tensors, 64)}:
            raise ValueError(f"{path} keeps features that changed since they were written: {_REMEDY}")
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a key, whole or not at all.

        Raises:
            OSError: in one line, where they cannot be written.
        """
        held = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        atomic_write(self._path(key), save(held, {"key": key, "content": fingerprint(key, held, 64)}))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def plain_form(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """What json writes of an object, so that different ones differ: its class, its arguments, and its weights apart.

    Args:
        value: a tensor, a plain value or a collection of them, a class or function with a name, anything `Described`, a
            data class, or a module that keeps nothing else.
        name: where it was found.
        tensors: is given its tensors, by where they were found.

    Raises:
        ValueError: in one line, for anything else, which could not be told from another of its kind.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return "tensor"
    if value is None or isinstance(value, str | bool | int | float):
        return [type(value).__name__, value]
    if isinstance(value, torch.dtype | torch.device | Path):
        return str(value)
    if isinstance(value, Mapping):
        return [[str(key), plain_form(each, f"{name}.{key}", tensors)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [plain_form(each, f"{name}.{place}", tensors) for place, each in enumerate(value)]
    if isinstance(value, type | FunctionType | BuiltinFunctionType) and "<" not in value.__qualname__:
        return [value.__module__, value.__qualname__, _code(value)]
    if isinstance(value, Decoder):
        return plain_form(value.vae, name, tensors)
    if isinstance(value, nn.Module):
        own, known = [*value.named_parameters(), *value.named_buffers()], set(map(id, tensors.values()))
        tensors |= {f"{name}.{key}": tensor for key, tensor in own if id(tensor) not in known}
    if isinstance(value, Described):
        kept: Any = value.__dict__.get("_init_args", {})
    elif isinstance(getattr(value, "config", None), Mapping):  # of diffusers
        kept = {key: each for key, each in value.config.items() if not key.startswith("_")}
    elif dataclasses.is_dataclass(value):
        kept = vars(value)
    elif isinstance(value, nn.Module):
        kept = {key: each for key, each in vars(value).items() if key not in _OF_EVERY_MODULE}
        kept |= dict(value.named_children())
    else:
        raise ValueError(
            "features are kept of an extractor that can be told from others: expected plain values, tensors, named "
            f"functions, modules of these and what is Described, got {type(value).__name__} at {shown(name)}; leave "
            "feature_cache out"
        )
    return [plain_form(type(value), name, tensors), plain_form(kept, name, tensors)]


def _code(defined: Any) -> list[str]:
    """The source of a function, or of a class and what it is built on, as far as there is some."""
    sources = []
    for each in getattr(defined, "__mro__", [defined]):
        if str(each.__module__).split(".")[0] not in ("torch", "builtins", "abc"):
            with suppress(OSError, TypeError):  # of a notebook, or compiled
                sources.append(inspect.getsource(each))
    return sources
