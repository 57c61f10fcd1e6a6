"""PNG and JPEG files of a folder: which there are, what class each is, and its pixels as a square image."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fdistill.weight_files import reason, shown

SUFFIXES = (".png", ".jpg", ".jpeg")
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # what such names hold in fact; PIL runs a program for some others


class UnreadableImage(ValueError):
    """An image that cannot be used; the message is one line, also when a worker process of a DataLoader raised it."""

    def __init__(self, message: str) -> None:
        """Args:
        message: the line; or a worker's traceback, whose last line is the error with its class.
        """
        super().__init__(message.strip().splitlines()[-1].removeprefix(f"{__name__}.UnreadableImage: "))


class PackedNames(Sequence[str]):
    """Names in one array: worker processes share it, where each would come to hold a copy of a list of a million."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        first = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[first : self._ends[index]].tobytes())


class Images(ABC):
    """Image files in an order of their own, read by number; few bytes each."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where image `index` lies, for messages."""

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """The bytes of its file."""

    @abstractmethod
    def told(self, index: int) -> tuple[str, int]:
        """Its name, without the folder that they all lie in, and its size in bytes."""

    def read(self, index: int, resolution: int, channels: int) -> Tensor:
        """Its pixels; as `read_image`."""
        try:
            file = self.open(index)
        except OSError as error:
            raise UnreadableImage(
                f"an image file is readable: cannot open {shown(self.name(index))} ({error.strerror}); restore it"
            ) from error
        with file:
            return read_image(file, resolution, channels, self.name(index))


class ImageFiles(Images):
    """Files of their own, in one folder or its sub-folders."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._folder, self._names = folder, PackedNames([str(file.relative_to(folder)) for file in files])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return str(self._folder / self._names[index])

    def told(self, index: int) -> tuple[str, int]:
        return self._names[index], (self._folder / self._names[index]).stat().st_size

    def open(self, index: int) -> BinaryIO:
        return (self._folder / self._names[index]).open("rb")


class Listing(NamedTuple):
    """What a folder holds."""

    images: Images
    labels: Tensor  # [N] int64
    class_names: list[str]


class _Files(NamedTuple):
    files: list[Path]
    labels: Tensor  # [N] int64
    class_names: list[str]


def read_image(source: Path | BinaryIO, resolution: int, channels: int, name: str | None = None) -> Tensor:
    """Decode one image, crop it to the central square and resize it: uint8 [channels, resolution, resolution].

    Args:
        source: a file, or its bytes.
        resolution: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        name: for messages, where source is not a path.

    Raises:
        UnreadableImage: The file is broken, truncated, no image, or has more than 8 bits per channel.
    """
    name = shown(str(source) if name is None else name)
    try:
        with Image.open(source, formats=_FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except Exception as error:  # decoders of broken files raise anything: OSError, SyntaxError, zlib.error, ...
        what = "no image" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise UnreadableImage(
            f"an image file is readable: cannot decode {name} ({what}); repair or remove it"
        ) from error
    if image.mode.startswith(("I", "F")):
        raise UnreadableImage(f"images have 8 bits per channel: got mode {image.mode} in {name}; convert it to 8 bits")
    image = image.convert("RGB" if channels == 3 else "L")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != resolution:
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.view(resolution, resolution, channels).permute(2, 0, 1)


def list_images(folder: Path) -> _Files:
    """Find the images of a folder, or of its sub-folders, in the order of their names; no image is read.

    Raises:
        ValueError: The folder is missing, mixes images and class folders, or has too few images.
    """
    if not folder.is_dir():
        raise ValueError(f"folder is an existing folder of images: got {folder}, which is none; check the path")
    top_level = _images_in(folder)
    in_classes = {
        child.name: _images_in(child) for child in sorted(folder.iterdir()) if child.is_dir() and child.name[0] != "."
    }
    filled = [name for name, files in in_classes.items() if files]
    if top_level and filled:
        raise ValueError(
            f"images lie either in the folder or in class sub-folders: got {len(top_level)} images and class folders"
            f" {filled[:3]} in {folder}; move the images into classes, or the sub-folders away"
        )
    if not top_level and not filled:
        raise ValueError(f"folder holds images: expected files {', '.join(SUFFIXES)}, got none in {folder}; add some")
    empty = sorted(set(in_classes) - set(filled))
    if filled and empty:
        raise ValueError(f"class sub-folders hold images: got none in {empty[:3]} of {folder}; fill or remove them")
    files = top_level or [file for name in filled for file in in_classes[name]]
    labels = [0] * len(top_level) or [c for c, name in enumerate(filled) for _ in in_classes[name]]
    check_enough(len(files), folder)
    return _Files(files, torch.tensor(labels), filled)


def check_enough(count: int, folder: Path) -> None:
    """Raise ValueError where there are fewer images than splits."""
    if count < 2:
        raise ValueError(f"two splits need two images: expected >= 2, got {count} in {folder}; add images")


def _images_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file() and f.name[0] != ".")
