"""Finished samples to be evaluated: what all fixed sets share, and .npz or .npy files of `fdistill sample` or ADM."""

import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fdistill.core.random import seeded
from fdistill.core.weight_files import CheckpointError, brief, reason

SUFFIXES = (".npz", ".npy")
_NAMES = {"samples": "labels", "arr_0": "arr_1"}  # of the array and of its labels: ours, and ADM's
_CHANNELS = (1, 3)
_LARGEST = 10.0  # of samples in about [-1, 1], which a network does not clip
_FORM = "expected samples (fdistill sample) or arr_0 (ADM): images of 8 bits, or numbers in [-1, 1]"


class _Read(NamedTuple):
    """[n, C, H, W] or [n, d], labels [n], and how they were read, in words."""

    x: Tensor
    labels: Tensor | None
    read_as: str


class FixedSet(ABC):
    """Finished samples, of which a random part is drawn.

    Attributes:
        evaluations: None, since it generates nothing.
        count: of its samples.
        class_labels: of all of them, int64 [count]; zeros where it has no classes.
        sample_shape: of one.
        num_classes: that the labels are of; 0 for none.
        facts: plain values that a report tells of it.
    """

    evaluations = None

    def __init__(self, path: Path | str, count: int, labels: Tensor | None, num_classes: int) -> None:
        self._path, self.count, self.num_classes = Path(path), count, num_classes
        self.class_labels = torch.zeros(count, dtype=torch.int64) if labels is None else labels
        self.sample_shape: tuple[int, ...] = ()
        self.facts: dict[str, Any] = {}

    @abstractmethod
    def read(self, numbers: Tensor) -> Tensor:
        """The samples with these numbers int64 [n] in [0, count), as `draw` gives them."""

    def labels(self, n: int, seed: int, wanted: Tensor | None = None) -> Tensor | None:
        """The classes of the samples that `draw` takes, whatever was wanted."""
        return self.class_labels[self._chosen(n, seed)] if self.num_classes else None

    def draw(self, n: int, seed: int, labels: Tensor | None = None) -> Tensor:
        """n different samples.

        Raises:
            ValueError: if there are fewer, if one cannot be read, or if `labels` are not what they have.
        """
        own = self.labels(n, seed)
        if labels is not None and (own is None or not torch.equal(labels.cpu(), own)):
            raise ValueError(f"{self._path} is a fixed set with classes of its own: draw without labels, or with its")
        return self.read(self._chosen(n, seed))

    def _chosen(self, n: int, seed: int) -> Tensor:
        if n > self.count:
            raise ValueError(
                f"{self._path} holds {self.count:,} samples: expected n <= {self.count}, got {n}; ask for fewer"
            )
        return torch.randperm(self.count, generator=seeded(seed))[:n]


class SamplesSource(FixedSet):
    """Samples of a file.

    The type and the shape decide what the numbers mean: uint8 are images [n, H, W, C] (or [n, C, H, W]) from 0 to 255;
    floats are images [n, C, H, W] (or [n, H, W, C]) in [-1, 1], or points [n, d]. C is 1 or 3.

    Args:
        file: .npz with `samples` and `labels`, or `arr_0` and `arr_1`; or .npy of such an array.
        num_classes: that its labels are of; as many as the largest tells, where not given or too few for it.

    Raises:
        CheckpointError: if it holds none, or numbers of an unknown range. No pickle in it is read.
    """

    def __init__(self, file: Path | str, num_classes: int | None = None) -> None:
        self._x, labels, read_as = _read(Path(file))
        classes = 0 if labels is None else max(int(labels.max()) + 1, num_classes or 0)
        super().__init__(file, len(self._x), labels, classes)
        self.sample_shape = tuple(self._x.shape[1:])
        self.facts = {"file": str(file), "samples": self.count, "read_as": read_as}

    def read(self, numbers: Tensor) -> Tensor:
        x = self._x[numbers]
        return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()


def _read(file: Path) -> _Read:
    arrays = _arrays(file)
    name = next((name for name in _NAMES if name in arrays), None)
    if name is None:
        statistics = {"mu", "sigma"} <= arrays.keys()
        what = "statistics of a reference (mu, sigma), no samples" if statistics else f"the arrays {sorted(arrays)[:5]}"
        raise CheckpointError(f"{file} holds {what}: {_FORM}")
    array = arrays[name]
    x, read_as = _meaning(array, file)
    labels = arrays.get(_NAMES[name])
    if labels is None or labels.size == 0:
        return _Read(x, None, read_as)
    if labels.shape != (len(x),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise CheckpointError(
            f"{file}: each sample has one class number in {_NAMES[name]}, from 0 on: expected integers of shape "
            f"({len(x)},), got {labels.dtype} of shape {labels.shape}; save them again"
        )
    return _Read(x, torch.from_numpy(labels.astype(np.int64)), read_as)


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"arr_0": found}
        with found:
            wanted = [name for pair in _NAMES.items() for name in pair]
            return {name: found[name] if name in wanted else np.zeros(0) for name in found.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise CheckpointError(
            f"{file} is truncated or no file of numpy arrays ({reason(error)}): {_FORM}; no pickle is read"
        ) from error


def _meaning(array: np.ndarray, file: Path) -> tuple[Tensor, str]:
    """The samples with channels first, and what their type and shape were taken to say."""
    bytes_, floats = array.dtype == np.uint8, array.dtype.kind == "f"
    if not len(array) or not (bytes_ or floats) or array.ndim not in ((3, 4) if bytes_ else (2, 4)):
        raise CheckpointError(f"{file}: {_FORM}; got {array.dtype} of shape {array.shape}; save them so")
    if floats and not np.isfinite(array).all():
        raise CheckpointError(f"{file}: samples are finite: got some that are not; make them again")
    if array.ndim == 2:
        return torch.from_numpy(array), f"points [n, {array.shape[1]}]"
    low, high = float(array.min()), float(array.max())
    if floats and (low >= 0 or max(-low, high) > _LARGEST):
        raise CheckpointError(
            f"{file}: {_FORM}; got {array.dtype} from {brief(round(low, 4))} to {brief(round(high, 4))}, of another "
            "range: save them as uint8 from 0 to 255, or in [-1, 1]"
        )
    array = array[..., None] if array.ndim == 3 else array
    last, first = array.shape[3] in _CHANNELS, array.shape[1] in _CHANNELS
    if not (last or first):
        raise CheckpointError(
            f"{file}: images have 1 or 3 channels, first or last: got shape {array.shape}; save them so"
        )
    channels_last = last and (bytes_ or not first)
    layout = "[n, H, W, C]" if channels_last else "[n, C, H, W]"
    x = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2) if channels_last else array))
    return x, f"{array.dtype} {layout}, {'0 to 255' if bytes_ else '-1 to 1'}"
