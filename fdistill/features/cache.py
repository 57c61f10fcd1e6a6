"""Features of real samples kept on disk from one start to the next: found again by all that they depend on."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fdistill.files import atomic_write
from fdistill.fingerprints import fingerprint

_FORMAT = 1  # raise it where the same extractor comes to give other features of the same samples
_REMEDY = "remove it, and it is made again"


class FeatureCache:
    """Tensors in safetensors files that are named by a fingerprint of what they were computed from.

    It covers the samples; the extractor's classes with their source files, plain arguments and weights, and those of
    the modules in it; and what rounding depends on: torch, device, number of threads. So what is read is what would
    have been computed, bit for bit where computing is deterministic. What a module keeps in anything but plain values,
    tensors and modules is not seen.

    Args:
        folder: is made where it is not there; files that nobody reads any more are the user's to remove.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def key(self, what: str, extractor: nn.Module, samples: Mapping[str, Tensor | None], *settings: Any) -> str:
        """The name of what `extractor`, as it is, makes of these samples."""
        device = next((tensor.device for tensor in extractor.buffers()), torch.device("cpu"))
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        machine = [torch.__version__, place, torch.get_num_threads()]
        modules = [[name, *_told(module)] for name, module in extractor.named_modules()]
        tensors = {f"samples.{name}": value for name, value in samples.items() if value is not None}
        tensors |= {f"weight.{name}": value for name, value in extractor.named_parameters()}
        tensors |= {f"buffer.{name}": value for name, value in extractor.named_buffers()}
        return f"{what}-{fingerprint([_FORMAT, what, machine, modules, settings], tensors, 64)}"

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
                told, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} keeps features and cannot be read: {_REMEDY}") from error
        if told != {"key": key, "content": fingerprint(key, tensors, 64)}:
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


def _told(module: nn.Module) -> tuple[list[str], list[str], dict[str, Any]]:
    """Its classes, fingerprints of the files they are in, and its plain attributes."""
    own = [cls for cls in type(module).__mro__ if cls.__module__.split(".")[0] not in ("torch", "builtins", "abc")]
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in (own or [type(module)])]
    plain = {name: value for name, value in vars(module).items() if name != "training" and _is_plain(value)}
    return names, [_source(cls) for cls in own], plain


def _source(cls: type) -> str:
    try:
        return fingerprint(Path(inspect.getsourcefile(cls)).read_text(encoding="utf-8"))
    except (TypeError, OSError, ValueError):  # of a notebook, or compiled
        return ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    return value is None or isinstance(value, str | bool | int | float)
