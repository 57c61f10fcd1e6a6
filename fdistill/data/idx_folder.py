"""Images in IDX files, the form of MNIST and of Fashion-MNIST, KMNIST and others made like it."""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.data.base import GenerativeDataModule
from fdistill.data.batches import InMemorySplit

_UNSIGNED_BYTES = 0x08  # the third byte of a file: the type of its entries


class IdxFolder(GenerativeDataModule):
    """Grey images in [-1, 1] with their classes: training on ``train-*`` files, held out are the ``t10k-*`` files.

    A folder holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and both as ``t10k-...``, each plain or
    ``.gz`` (the plain one is read where both are there). The folder that torchvision downloads into does too, if it
    holds one data set. Pixels stay 8-bit in memory. Format: http://yann.lecun.com/exdb/mnist.

    Args:
        folder: Folder with the four files, or one from which they lie under ``raw/`` or ``NAME/raw/``.
        batch_size: Samples per batch and rank, >= 1.
        seed: Seed of the order of the training stream, >= 0.
        num_workers: Processes that fetch batches, >= 0.

    Raises:
        ValueError: An argument is out of its range; or, on first use of the data, a file is missing, damaged, or no IDX
            file of bytes.
    """

    def __init__(self, folder: str, batch_size: int = 128, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(batch_size, seed, num_workers)
        self.folder = str(folder)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(1, height, width)."""
        return (1, *self._train_images.sizes[1:])

    @property
    def num_classes(self) -> int:
        """One more than the largest label of the training split."""
        return int(self._train_labels.max()) + 1

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Return the two splits."""
        folder = Path(self.folder)
        held_out = IdxFile.find(folder, "t10k-images", 3), IdxFile.find(folder, "t10k-labels", 1).read()
        return _split(self._train_images, self._train_labels), _split(*held_out)

    @cached_property
    def _train_images(self) -> "IdxFile":
        return IdxFile.find(Path(self.folder), "train-images", 3)

    @cached_property
    def _train_labels(self) -> Tensor:
        return IdxFile.find(Path(self.folder), "train-labels", 1).read()


class IdxFile(NamedTuple):
    """An IDX file of unsigned bytes whose header has been read.

    Attributes:
        path: of the file, gzipped where its name ends in ``.gz``.
        sizes: of the array that it holds.
    """

    path: Path
    sizes: tuple[int, ...]

    @staticmethod
    def find(folder: Path, stem: str, dimensions: int) -> "IdxFile":
        """The file ``STEM-idxN-ubyte`` or ``STEM.idxN-ubyte``, plain or ``.gz``, of an array of N dimensions.

        Raises:
            ValueError: There is none, there are several, or it is no such file.
        """
        names = [f"{stem}{dot}idx{dimensions}-ubyte{suffix}" for suffix in ("", ".gz") for dot in "-."]
        places = (folder, folder / "raw", *sorted(folder.glob("*/raw")))  # the last two are torchvision's
        found = [next((place / n for n in names if (place / n).is_file()), None) for place in places]
        paths = [path for path in found if path is not None]
        if len(paths) != 1:
            got = " and ".join(str(path) for path in paths) or "none"
            raise ValueError(
                f"data.folder holds one data set of IDX files: expected {names[0]} or {names[2]} in {folder} or in "
                f"NAME/raw under it, got {got}; give the folder that holds the four files"
            )
        with _opened(paths[0]) as file:
            header = file.read(4 + 4 * dimensions)
        expected = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
        if len(header) != 4 + 4 * dimensions or header[:4] != expected:
            raise ValueError(
                f"an IDX file begins with its type and its number of dimensions: expected {expected.hex()} and "
                f"{dimensions} sizes in {paths[0]}, got {header.hex() or 'an empty file'}; fetch the file again"
            )
        return IdxFile(paths[0], struct.unpack(f">{dimensions}I", header[4:]))

    def read(self) -> Tensor:
        """The array, uint8 of `sizes`.

        Raises:
            ValueError: The file holds more or fewer entries than its header says.
        """
        entries = math.prod(self.sizes)
        with _opened(self.path) as file:
            file.seek(4 + 4 * len(self.sizes))
            data = file.read(entries + 1)
        if len(data) != entries:
            got = f"{len(data)}" if len(data) < entries else "more"
            raise ValueError(
                f"{self.path} holds what its header says: expected {entries} bytes, got {got}; fetch the file again"
            )
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(self.sizes)


@contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a readable IDX file: expected so, got {error}; fetch the file again") from error


def _split(images: IdxFile, labels: Tensor) -> InMemorySplit:
    if len(labels) != images.sizes[0]:
        raise ValueError(
            f"each image has one label: expected {images.sizes[0]} labels for {images.path}, got {len(labels)}; "
            "take both files from one data set"
        )
    return InMemorySplit(images.read().unsqueeze(1), labels.long())
