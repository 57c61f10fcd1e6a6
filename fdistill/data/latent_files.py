"""Latents of images in safetensors files: what `fdistill encode` writes, and how one sample is read from it."""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fdistill.core.weight_files import CheckpointError, file_size, read_json, reason

DESCRIPTION, DECODER = "latents.json", "vae"
MEAN, STD, FLIPPED, LABELS = "mean", "std", "flipped_", "labels"
FORMAT = 1
FILE_NAME = re.compile(r"latents-\d{5,}\.safetensors")
_KINDS = {"F16", "F32"}  # of numbers, as safetensors calls them
_REMEDY = "write it again with fdistill encode"


class LatentDescription(NamedTuple):
    """What `latents.json` says.

    Attributes:
        sample_shape: of one latent, (C, h, w).
        posterior: whether there is a standard deviation beside each mean (AutoencoderKL).
        flips: whether the latent of each mirror image is there too.
        class_names: sorted; empty without classes.
        files: name of each file, images in it and its bytes.
        made: how they were made, for people: VAE, scaling, resolution.
        request: fingerprint of all that decides what is in the files.
        format: of this description.
    """

    sample_shape: list[int]
    posterior: bool
    flips: bool
    class_names: list[str]
    files: list[dict[str, Any]]
    made: dict[str, Any]
    request: str
    format: int = FORMAT


def read_description(folder: Path) -> LatentDescription:
    """What the latents of a folder are.

    Raises:
        CheckpointError: with one line, where the folder holds none, or its description is not understood.
    """
    path = folder / DESCRIPTION
    found = read_json(path, "the description of latents that fdistill encode writes last")
    if found.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of format {found.get('format')!r}: expected {FORMAT}; {_REMEDY}")
    try:
        described = LatentDescription(**found)
        names = {file["name"] for file in described.files}
        is_whole = all(type(file[key]) is int for file in described.files for key in ("images", "bytes"))
        if not names or len(names) < len(described.files) or not is_whole or not all(map(FILE_NAME.fullmatch, names)):
            raise ValueError("each file has a name like latents-00000.safetensors, a number of images and of bytes")
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} describes no latents ({reason(error)}): {_REMEDY}") from error
    return described


class LatentFiles:
    """Samples of a folder of latents, read by number from memory-mapped files.

    Args:
        folder: what fdistill encode wrote.

    Raises:
        CheckpointError: with one line, where a file is missing, cut off, or not what the description says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.description = folder, read_description(folder)
        self._first = torch.tensor([0, *(file["images"] for file in self.description.files)]).cumsum(0)
        parts = [self._checked(number) for number in range(len(self.description.files))]
        self.labels = torch.cat(parts)
        self._opened: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, flipped: bool) -> tuple[Tensor, Tensor | None]:
        """Mean and, where there is a posterior, standard deviation of one latent, [C, h, w] float32.

        Raises:
            CheckpointError: with one line, where its file is gone.
        """
        number = int(torch.searchsorted(self._first, index, right=True)) - 1
        if number not in self._opened:
            self._opened[number] = self._slices(number)
        slices, place = self._opened[number], index - int(self._first[number])
        prefix = FLIPPED * flipped
        mean = slices[prefix + MEAN][place].float()
        std = slices[prefix + STD][place].float() if self.description.posterior else None
        return mean, std

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    @functools.cached_property
    def _names(self) -> list[str]:
        kinds = [MEAN, *([STD] if self.description.posterior else [])]
        return [prefix + kind for prefix in ["", *([FLIPPED] if self.description.flips else [])] for kind in kinds]

    def _slices(self, number: int) -> dict[str, Any]:
        try:
            opened = safe_open(self._path(number), framework="pt")
            return {name: opened.get_slice(name) for name in self._names}
        except (SafetensorError, OSError) as error:
            raise _broken(self._path(number)) from error

    def _path(self, number: int) -> Path:
        return self.folder / self.description.files[number]["name"]

    def _checked(self, number: int) -> Tensor:
        """The labels of one file that is what the description says."""
        file, path = self.description.files[number], self._path(number)
        shape = [file["images"], *self.description.sample_shape]
        try:
            size = file_size(path, f"latents are missing; {_REMEDY}")
            if size != file["bytes"]:
                raise CheckpointError(f"{path} is cut off or changed: expected {file['bytes']:,} bytes, got {size:,}")
            with safe_open(path, framework="pt") as opened:
                request = (opened.metadata() or {}).get("request")
                shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
                kinds = {opened.get_slice(name).get_dtype() for name in shapes.keys() - {LABELS}}
                labels = opened.get_tensor(LABELS)
        except (SafetensorError, OSError, KeyError) as error:
            raise _broken(path) from error
        expected = {name: shape for name in self._names} | {LABELS: shape[:1]}
        if shapes != expected or not kinds <= _KINDS or request != self.description.request:
            raise CheckpointError(f"{path} holds other latents than {DESCRIPTION} beside it says: {_REMEDY}")
        classes = max(len(self.description.class_names), 1)
        if labels.dtype != torch.int64 or int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise CheckpointError(f"{path} holds labels outside its {classes} classes: {_REMEDY}")
        return labels


def _broken(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is missing, damaged or no file of latents: {_REMEDY}")
