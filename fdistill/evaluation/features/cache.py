"""Features of real samples kept on disk from one start to the next: found again by all that they depend on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fdistill.core.atomic_files import atomic_write
from fdistill.core.fingerprints import fingerprint
from fdistill.evaluation.features.identity import Identity

_FORMAT = 3  # raise it where the same extractor comes to give other features of the same samples
_REMEDY = "remove it, and it is made again"


def user_cache() -> Path:
    """Folder of learned extractors where nobody named one: $XDG_CACHE_HOME/fdistill, or ~/.cache/fdistill.

    As the XDG base directory specification says, a relative $XDG_CACHE_HOME does not count.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "fdistill"


class FeatureCache:
    """Tensors in safetensors files that are named by a fingerprint of what they were computed from.

    It covers the samples; the extractor's classes with their source files, arguments and weights, and those of the
    modules in it (`Identity`); and what rounding depends on: torch, device, number of threads, TF32. So what is read is
    what would have been computed, bit for bit where computing is deterministic. Functions that are called by their
    names are seen only where they lie in the same files.

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
            settings: what else it depends on, of the kinds that `Identity` sees.

        Raises:
            ValueError: in one line, where it keeps something that cannot be seen.
        """
        device = next((tensor.device for tensor in extractor.buffers()), torch.device("cpu"))
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        rounding = [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_default_dtype()]
        machine = [torch.__version__, place, torch.get_num_threads(), *map(str, rounding)]
        identity = Identity()
        told = [identity.of(extractor, "extractor"), identity.of(settings, "settings")]
        tensors = {f"samples.{name}": value for name, value in samples.items() if value is not None} | identity.tensors
        return f"{what}-{fingerprint([_FORMAT, what, machine, told], tensors, 64)}"

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
