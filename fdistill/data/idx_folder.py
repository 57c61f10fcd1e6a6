"""Images in IDX files, the form of MNIST and of Fashion-MNIST, KMNIST and others made like it."""

import gzip
import math
import struct
import zlib
from functools import cached_property
from pathlib import Path

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
        return self._train.sample_shape

    @property
    def num_classes(self) -> int:
        """One more than the largest label of the training split."""
        return int(self._train.labels.max()) + 1

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Return the two splits."""
        return self._train, _read_split(Path(self.folder), "t10k")

    @cached_property
    def _train(self) -> InMemorySplit:
        return _read_split(Path(self.folder), "train")


def _read_split(folder: Path, split: str) -> InMemorySplit:
    images, labels = _read(folder, f"{split}-images", 3), _read(folder, f"{split}-labels", 1)
    if len(labels) != len(images):
        raise ValueError(
            f"each image has one label: expected {len(images)} labels for {split}-images in {folder}, got "
            f"{len(labels)}; take both files from one data set"
        )
    return InMemorySplit(images.unsqueeze(1), labels.long())


def _read(folder: Path, stem: str, dimensions: int) -> Tensor:
    """The array of the one file ``STEM-idxN-ubyte`` or ``STEM.idxN-ubyte``, plain or ``.gz``: uint8 of N dimensions.

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
    path, start = paths[0], 4 + 4 * dimensions
    try:
        data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a readable IDX file: expected so, got {error}; fetch the file again") from error
    kind = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
    sizes = struct.unpack(f">{dimensions}I", data[4:start]) if len(data) >= start else ()
    if data[:4] != kind or len(data) != start + math.prod(sizes):
        raise ValueError(
            f"an IDX file has its type, its sizes and so many bytes: expected {kind.hex()} and {math.prod(sizes)} "
            f"bytes for {list(sizes)} in {path}, got {data[:4].hex() or 'an empty file'} and {len(data) - start}; "
            "fetch the file again"
        )
    return torch.frombuffer(data, dtype=torch.uint8, offset=start).view(sizes)
