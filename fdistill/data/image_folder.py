"""A folder of image files as square images, in memory or read as they are needed, with classes or without."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.core.file_suffixes import IMAGES
from fdistill.core.fingerprints import fingerprint
from fdistill.data.archives import archives_in
from fdistill.data.base import GenerativeDataModule, require_at_least
from fdistill.data.batches import PROGRESS_BAR_FROM, InMemorySplit, ReadSplit, Split
from fdistill.data.image_files import Images, Listing, list_images
from fdistill.data.splits import stratified_split
from fdistill.data.tar_images import list_archives


class ImageFolder(GenerativeDataModule):
    """The images of one folder, or of its sub-folders, whose sorted names are then the classes; values in [-1, 1].

    EDM's ``dataset.json`` gives the classes where it is there. Each image is turned upright by its EXIF tag, laid on
    white where it is transparent, cropped to the central square, resized with antialiasing, and kept as 8-bit pixels.
    The held-out split is stratified by class. Uncompressed ``*.tar`` and ``*.zip`` files, of a folder or one alone, are
    read like the folder that they would unpack to, without unpacking them (`list_archives`).

    Where they do not fit in memory, ``in_memory: false`` decodes the images of a batch when it is fetched, in
    ``num_workers`` processes: the same samples in the same order, bit for bit.

    Args:
        folder: Folder with image files (`fdistill.data.image_names`), with one sub-folder of them per class, or with
            archives; or one archive.
        resolution: Height and width in pixels, >= 1.
        channels: 3 for colour, 1 for grey.
        held_out_fraction: Part of the images that is held out, in (0, 1); at least one image is.
        horizontal_flip: Training sees each image and its mirror image, as twice as many samples: once each per epoch.
        batch_size: Samples per batch and rank, >= 1.
        split_seed: Chooses the held-out images, >= 0.
        seed: Seed of the order of the training stream, >= 0.
        num_workers: Processes that fetch batches, >= 0.
        in_memory: Decode all images on first use and keep them; otherwise each one whenever it is needed.
        metric_samples: Images of each split that metrics read where not all are in memory, >= 1.

    Raises:
        ValueError: An argument is out of its range; or, on first use of the data, the folder is missing, mixes images
            and class folders, has too few images, or holds a file that is not a readable image (met in training where
            not all are in memory).
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
        in_memory: bool = True,
        metric_samples: int = 10_000,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        require_at_least(1, resolution=resolution, metric_samples=metric_samples)
        require_at_least(0, split_seed=split_seed)
        if channels not in (1, 3):
            raise ValueError(f"channels is 3 for colour or 1 for grey: expected 1 or 3, got {channels}; choose one")
        if not 0 < held_out_fraction < 1:
            raise ValueError(f"held_out_fraction is a part: expected (0, 1), got {held_out_fraction}; 0.1 is usual")
        self.folder, self.resolution, self.channels = str(folder), resolution, channels
        self.held_out_fraction, self.horizontal_flip, self.split_seed = held_out_fraction, horizontal_flip, split_seed
        self.in_memory, self.metric_samples = in_memory, metric_samples
        self._listing: Listing | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(channels, resolution, resolution)."""
        return (self.channels, self.resolution, self.resolution)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without; reads the folder's listing, no image."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Sorted names of the class sub-folders, or the class numbers; the label is the position in this list."""
        return self._listed().class_names

    def load_splits(self) -> tuple[Split, Split]:
        """Split the images; decode them all where they are kept in memory."""
        images, labels, _ = self._listed()
        train, held_out = held_out_part(labels, self.held_out_fraction, self.split_seed, self.folder)
        if not self.in_memory:
            return self._read_split(train, self.horizontal_flip), self._read_split(held_out)
        x = torch.empty((len(images), *self.sample_shape), dtype=torch.uint8)
        for i in tqdm(range(len(images)), desc="decoding images", disable=len(images) <= PROGRESS_BAR_FROM):
            x[i] = images.read(i, self.resolution, self.channels)
        return InMemorySplit(x[train], labels[train], self.horizontal_flip), InMemorySplit(
            x[held_out], labels[held_out]
        )

    def everything(self) -> "ImageSplit":
        """All images in the order of their names, before they are split; none is read yet."""
        return self._read_split(torch.arange(len(self._listed().images)))

    def _read_split(self, chosen: Tensor, mirrored: bool = False) -> "ImageSplit":
        images, labels, _ = self._listed()
        return ImageSplit(images, chosen, labels[chosen], mirrored, self.sample_shape, self.metric_samples)

    def _listed(self) -> Listing:
        if self._listing is None:
            self._listing = list_folder(Path(self.folder))
        return self._listing


class ImageSplit(ReadSplit):
    """Those of the images with the numbers `chosen`, decoded when they are fetched."""

    def __init__(
        self,
        images: Images,
        chosen: Tensor,
        labels: Tensor,
        mirrored: bool,
        sample_shape: tuple[int, ...],
        metric_samples: int,
    ) -> None:
        super().__init__(labels, mirrored, metric_samples)
        self.images, self.chosen, self._sample_shape = images, chosen, sample_shape

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self._sample_shape

    def files_fingerprint(self) -> str:
        """Of names and sizes of the files."""
        return fingerprint([self.images.identity(i) for i in self.chosen.tolist()])

    def read(self, indices: Sequence[int]) -> Tensor:
        channels, resolution, _ = self.sample_shape
        x = torch.empty((len(indices), *self.sample_shape), dtype=torch.uint8)
        for place, index in enumerate(indices):
            mirror, number = divmod(index, len(self.labels))
            pixels = self.images.read(int(self.chosen[number]), resolution, channels)
            x[place] = pixels.flip(-1) if mirror else pixels
        return x


def list_folder(folder: Path) -> Listing:
    """Find the images of a folder: its files, those of its class sub-folders, or those in its archives.

    Raises:
        ValueError: As `list_images` and `list_archives`, or where the folder holds both.
    """
    archives = archives_in(folder)
    if not archives:
        return list_images(folder)
    strays = [file.name for depth in ("*", "*/*") for file in folder.glob(depth) if file.suffix.lower() in IMAGES]
    if strays:
        raise ValueError(
            f"images lie either in files or in {archives[0].suffix} files: got {min(strays)} and {archives[0].name} in"
            f" {folder}; move one away"
        )
    return list_archives(folder, archives)


def held_out_part(labels: Tensor, fraction: float, seed: int, folder: str) -> tuple[Tensor, Tensor]:
    """Divide images with these labels [N]: numbers of the training ones and of the held-out ones, ascending.

    Raises:
        ValueError: There are no two images of any class.
    """
    train, held_out = stratified_split(labels, min(max(1, round(fraction * len(labels))), len(labels) - 1), seed)
    if len(held_out) == 0:
        raise ValueError(
            f"a training and a held-out split need two images of some class: got {len(labels)} images in"
            f" {int(labels.max()) + 1} classes in {folder}; add images"
        )
    return train, held_out
