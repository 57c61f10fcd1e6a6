"""Image files of a folder: which there are, what class each is, and its pixels as a square image."""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fdistill.core.file_suffixes import IMAGES
from fdistill.core.weight_files import shown
from fdistill.data.decode import UnreadableImage, own_shape, read_image
from fdistill.data.image_names import LABELS, Sieve, by_folders, by_labels_file, is_passed_over


def packed(names: Sequence[str]) -> np.ndarray:
    """Names in one array: worker processes share it, where each would come to hold a copy of a list of a million."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


class Images(ABC):
    """Image files in an order of their own, read by number; few bytes each."""

    _names: np.ndarray  # of `packed`, without the folder that they all lie in

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)

    @abstractmethod
    def name(self, index: int) -> str:
        """Where image `index` lies, for messages."""

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """The bytes of its file."""

    @abstractmethod
    def identity(self, index: int) -> tuple[str, int]:
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
            return read_image(file, resolution, channels, self.name(index), self._suffix(index))

    def shape(self, index: int) -> tuple[int, int, int]:
        """Channels, 1 or 3, and sides of the square that `read` makes of it at its own size; by its header."""
        with self.open(index) as file:
            return own_shape(file, self.name(index), self._suffix(index))

    def _suffix(self, index: int) -> str:
        return PurePath(os.fsdecode(self._names[index])).suffix


class ImageFiles(Images):
    """Files of their own, in one folder or its sub-folders."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, packed(names)

    def name(self, index: int) -> str:
        return str(self._folder / os.fsdecode(self._names[index]))

    def identity(self, index: int) -> tuple[str, int]:
        return os.fsdecode(self._names[index]), Path(self.name(index)).stat().st_size

    def open(self, index: int) -> BinaryIO:
        return Path(self.name(index)).open("rb")


class Listing(NamedTuple):
    """What a folder holds."""

    images: Images
    labels: Tensor  # [N] int64
    class_names: list[str]


def list_images(folder: Path) -> Listing:
    """Find the images of a folder, in its sub-folders too, by their names and sizes; no image is read.

    EDM's dataset.json gives the classes where it is there (`by_labels_file`), else the sub-folders do (`by_folders`).
    A warning counts the files that are left out.

    Raises:
        ValueError: The folder is missing, mixes images and class folders, has too few images, one that is empty or a
            broken link, or sub-folders that look like something else than classes.
    """
    if not folder.is_dir():
        raise ValueError(f"folder is an existing folder of images: got {folder}, which is none; check the path")
    sieve, folders = Sieve(), set()
    names: list[str] = []
    bad: list[str] = []
    for name, entry in _files_below(folder):
        if entry is None:
            folders.add(name)
        elif sieve.is_image(name):
            names.append(name)
            if not _has_bytes(entry):
                bad.append(name)
    check_whole(bad, len(names), folder)
    if (folder / LABELS).is_file() and names:
        arranged = by_labels_file(names, (folder / LABELS).read_bytes(), str(folder / LABELS))
    else:
        _check_filled(names, folders, folder)
        arranged = by_folders(names, folder, packed=False)
    check_enough(len(names), folder)
    warn_of(folder, sieve.left_out() + arranged.notes)
    return Listing(ImageFiles(folder, [names[i] for i in arranged.order]), arranged.labels, arranged.class_names)


def warn_of(folder: Path, notes: list[str]) -> None:
    """One warning, of the first rank, where there is something to say."""
    if notes:
        rank_zero_warn(f"{folder}: {'; '.join(notes)}")


def check_enough(count: int, folder: Path) -> None:
    """Raise ValueError where there are fewer images than splits."""
    if count < 2:
        raise ValueError(f"two splits need two images: expected >= 2, got {count} in {folder}; add images")


def check_whole(bad: Sequence[str], total: int, place: Path) -> None:
    """Raise ValueError where image files have no bytes, or are none."""
    if bad:
        raise ValueError(
            f"an image file is readable: cannot decode {shown(min(bad))} in {place}, one of {len(bad)} of {total} that "
            "are empty, broken links or no files; fetch what they point to (git annex get, dvc pull), or remove them"
        )


def _files_below(folder: Path, prefix: str = "", above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Name and entry of each file that is not in a hidden folder; the name alone of each folder."""
    place = folder.stat()
    if (place.st_dev, place.st_ino) in above:
        raise ValueError(f"a folder of images has no link to a folder above it: got {folder}; remove the link")
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield prefix + entry.name, entry
            elif not is_passed_over(entry.name):
                yield prefix + entry.name, None
                here = (*above, (place.st_dev, place.st_ino))
                yield from _files_below(folder / entry.name, f"{prefix}{entry.name}/", here)


def _has_bytes(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file that is not empty, and no link that leads nowhere, pipe or device."""
    try:
        found = entry.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _check_filled(names: Sequence[str], folders: set[str], folder: Path) -> None:
    """Raise ValueError where there are no images, or none in a sub-folder beside others that have some."""
    if not names:
        found = sorted(shown(child.name) for child in folder.iterdir())[:5]
        latents = "; LatentFolder reads latents" * any(name.startswith("latents") for name in found)
        raise ValueError(
            f"folder holds images: expected files {', '.join(IMAGES)}, got none in {folder} but"
            f" {found or 'nothing'}; add some, or give another folder{latents}"
        )
    filled = {name.partition("/")[0] for name in names if "/" in name}
    empty = sorted({name.partition("/")[0] for name in folders} - filled)
    if filled and empty:
        raise ValueError(f"class sub-folders hold images: got none in {empty[:3]} of {folder}; fill or remove them")
