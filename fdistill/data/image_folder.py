"""A folder of PNG and JPEG files as square images in memory, with class sub-folders or without."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from fdistill.data.base import GenerativeDataModule, require_at_least
from fdistill.data.batches import InMemorySplit
from fdistill.data.splits import stratified_split

SUFFIXES = (".png", ".jpg", ".jpeg")
PROGRESS_BAR_FROM = 1000  # images; fewer decode before a bar is worth its line


class ImageFolder(GenerativeDataModule):
    """The images of one folder, or of its sub-folders, whose sorted names are then the classes; values in [-1, 1].

    Each image is turned upright by its EXIF tag, cropped to the central square, resized with antialiasing, and kept as
    8-bit pixels. The held-out split is stratified by class.

    Args:
        folder: Folder with ``*.png``, ``*.jpg``, ``*.jpeg``, or with one sub-folder of them per class.
        resolution: Height and width in pixels, >= 1.
        channels: 3 for colour, 1 for grey.
        held_out_fraction: Part of the images that is held out, in (0, 1); at least one image is.
        horizontal_flip: Training sees each image and its mirror image, as twice as many samples: once each per epoch.
        batch_size: Samples per batch and rank, >= 1.
        split_seed: Chooses the held-out images, >= 0.
        seed: Seed of the order of the training stream, >= 0.
        num_workers: Processes that fetch batches, >= 0.

    Raises:
        ValueError: An argument is out of its range; or, on first use of the data, the folder is missing, mixes images
            and class folders, has too few images, or holds a file that is not a readable image.
    """

    def __init__(
        self,
        folder: str,
        resolution: int,
        channels: Literal[1, 3] = 3,
        held_out_fraction: float = 0.1,
        horizontal_flip: bool = False,
        batch_size: int = 128,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        require_at_least("resolution", resolution, 1)
        require_at_least("split_seed", split_seed, 0)
        if channels not in (1, 3):
            raise ValueError(f"channels is 3 for colour or 1 for grey: expected 1 or 3, got {channels}; choose one")
        if not 0 < held_out_fraction < 1:
            raise ValueError(f"held_out_fraction is a part: expected (0, 1), got {held_out_fraction}; 0.1 is usual")
        self.folder, self.resolution, self.channels = str(folder), resolution, channels
        self.held_out_fraction, self.horizontal_flip, self.split_seed = held_out_fraction, horizontal_flip, split_seed
        self._listing: _Listing | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(channels, resolution, resolution)."""
        return (self.channels, self.resolution, self.resolution)

    @property
    def num_classes(self) -> int:
        """Number of class sub-folders, 0 without; reads the folder's listing, no image."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Sorted names of the class sub-folders; the label is the position in this list."""
        return self._listed().class_names

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Decode all images and split them."""
        files, labels, _ = self._listed()
        num_held_out = max(1, round(self.held_out_fraction * len(files)))
        train, held_out = stratified_split(labels, min(num_held_out, len(files) - 1), self.split_seed)
        if len(held_out) == 0:
            raise ValueError(
                f"a training and a held-out split need two images of some class: got {len(files)} images in"
                f" {max(self.num_classes, 1)} classes in {self.folder}; add images"
            )
        x = torch.empty((len(files), *self.sample_shape), dtype=torch.uint8)
        for i, file in enumerate(tqdm(files, desc="decoding images", disable=len(files) <= PROGRESS_BAR_FROM)):
            x[i] = read_image(file, self.resolution, self.channels)
        return InMemorySplit(x[train], labels[train], self.horizontal_flip), InMemorySplit(
            x[held_out], labels[held_out]
        )

    def _listed(self) -> "_Listing":
        if self._listing is None:
            self._listing = list_images(Path(self.folder))
        return self._listing


def read_image(file: Path, resolution: int, channels: int) -> Tensor:
    """Decode one image, crop it to the central square and resize it: uint8 [channels, resolution, resolution].

    Raises:
        ValueError: The file is broken, truncated, no image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(file) as source:
            image = ImageOps.exif_transpose(source)
            image.load()
    except Exception as error:  # decoders of broken files raise anything: OSError, SyntaxError, zlib.error, ...
        raise ValueError(f"an image file is readable: cannot decode {file} ({error}); repair or remove it") from error
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"images have 8 bits per channel: got mode {image.mode} in {file}; convert it to 8 bits")
    image = image.convert("RGB" if channels == 3 else "L")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != resolution:
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.view(resolution, resolution, channels).permute(2, 0, 1)


class _Listing(NamedTuple):
    files: list[Path]
    labels: Tensor  # [N] int64
    class_names: list[str]


def list_images(folder: Path) -> _Listing:
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
    if len(files) < 2:
        raise ValueError(f"two splits need two images: expected >= 2, got {len(files)} in {folder}; add images")
    return _Listing(files, torch.tensor(labels), filled)


def _images_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file() and f.name[0] != ".")
