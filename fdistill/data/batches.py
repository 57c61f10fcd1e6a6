"""A batch, and the splits of a data set that hand out whole batches at once: in memory, or read when it is fetched."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from fdistill.core.random import generator_for
from fdistill.models.condition import Condition, Takes

PROGRESS_BAR_FROM = 1000  # samples; fewer are read before a bar is worth its line
_READ_AT_ONCE = 64


class Batch(NamedTuple):
    """Samples, what they are conditioned on, and their class (or mode) numbers for metrics.

    ``classes`` are all 0 where the data has no classes. With one set of classes the condition is their numbers.
    """

    x: Tensor  # [B, *sample_shape] float32, images in [-1, 1]
    classes: Tensor  # [B] int64 in [0, num_classes)
    condition: Condition = Condition()  # of B samples, or empty


class Split(Dataset[Batch], ABC):
    """Samples with class numbers, which are their condition too where a subclass has no other.

    Attributes:
        labels: [N] int64, without mirror images.
        takes: what the class numbers stand for; the data module tells.
        drawn_anew: whether a sample is another one in every epoch; its index is then index + (epoch + 1) len(self) in
            the training stream, and index alone names a draw that is always the same.
    """

    labels: Tensor
    takes: Takes = {}
    drawn_anew = False

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples, mirror images included."""

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the samples with these indices, in this order; a DataLoader calls this once per batch."""

    def __getitem__(self, index: int) -> Batch:
        """Return sample ``index`` without its batch dimension."""
        batch = self.__getitems__([index])
        return Batch(batch.x[0], batch.classes[0])

    def batch(self, x: Tensor, classes: Tensor) -> Batch:
        """Return samples [B, ...] of these classes [B] with their condition."""
        return Batch(x, classes, Condition.of_numbers(self.takes, classes))

    @abstractmethod
    def measured(self) -> "InMemorySplit":
        """Return what metrics read of the split, in order and without mirror images: all N samples if in memory."""


class InMemorySplit(Split):
    """Samples in memory, fetched by one ``index_select`` per batch.

    8-bit pixels stay 8-bit pixels: what asks for rows by their indices, or streams them in batches, holds float32 of
    those alone.

    Args:
        x: [N, *sample_shape], float32, or uint8 pixels that become float32 in [-1, 1] when they are fetched.
        labels: [N] int64.
        mirrored: The split also holds the left-right mirror image of sample i, as sample N + i.

    Raises:
        ValueError: There is no sample, the labels are not one per sample, or a value is NaN or infinite.
    """

    def __init__(self, x: Tensor, labels: Tensor, mirrored: bool = False) -> None:
        if len(x) == 0:
            raise ValueError("a split holds at least one sample: expected N >= 1, got 0; enlarge the data")
        if labels.shape != x.shape[:1]:
            raise ValueError(
                f"labels hold one index per sample: expected {tuple(x.shape[:1])}, got {tuple(labels.shape)};"
                " pass zeros where the data has no classes"
            )
        bad = ~torch.isfinite(x.flatten(1)).all(dim=1) if x.is_floating_point() else torch.zeros(1, dtype=torch.bool)
        if bad.any():
            count = int((~torch.isfinite(x)).sum())
            raise ValueError(
                f"data is finite: expected no NaN or infinity, got {count} such values in {int(bad.sum())} samples,"
                f" the first in sample {int(bad.nonzero()[0])}; repair or drop them"
            )
        self.x, self.labels, self.mirrored = x, labels.long(), mirrored

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x) * (2 if self.mirrored else 1)

    def __getitems__(self, indices: Tensor | Sequence[int]) -> Batch:
        index = torch.as_tensor(indices, dtype=torch.long)
        mirror = index >= len(self.x)  # never true unless mirrored: index_select refuses the index
        index = index - len(self.x) * mirror if self.mirrored else index
        x = _as_float(self.x.index_select(0, index))
        if self.mirrored:
            x = torch.where(mirror.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)
        return self.batch(x, self.labels.index_select(0, index))

    def rows(self, indices: Tensor | Sequence[int]) -> Batch:
        """Return the samples with these indices, in this order; the same as ``__getitems__``."""
        return self.__getitems__(indices)

    def first(self, n: int) -> Batch:
        """Return the first n samples, or all where there are fewer."""
        return self.rows(range(min(n, len(self))))

    def batches(self, size: int) -> Iterator[Batch]:
        """Return all samples in order, ``size`` at a time."""
        return (self.rows(range(i, min(i + size, len(self)))) for i in range(0, len(self), size))

    def copied(self) -> Batch:
        """Return a copy of all samples in float32, four times the size of 8-bit pixels: for small data alone."""
        return self.first(len(self))

    def measured(self) -> "InMemorySplit":
        return InMemorySplit(self.x, self.labels) if self.mirrored else self

    def std(self) -> float:
        """Return the standard deviation over all entries, mirror images left out (divisor: the number of entries)."""
        mean = sum(float(_as_float(chunk).double().sum()) for chunk in self.x.split(4096)) / self.x.numel()
        squares = sum(float((_as_float(chunk).double() - mean).square().sum()) for chunk in self.x.split(4096))
        return (squares / self.x.numel()) ** 0.5


class ReadSplit(Split):
    """Samples that are read from files when a batch is fetched: memory holds a batch, and what metrics read.

    A subclass gives ``sample_shape`` and ``read``.

    Args:
        labels: [N] int64, N >= 1.
        mirrored: The split also holds the left-right mirror image of sample i, as sample N + i.
        metric_samples: Samples that metrics read, >= 1; an even part of the split where it has more.
    """

    def __init__(self, labels: Tensor, mirrored: bool, metric_samples: int) -> None:
        self.labels, self.mirrored, self.metric_samples = labels, mirrored, metric_samples
        self._for_metrics: InMemorySplit | None = None

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Tensor:
        """Return samples [n, *sample_shape] by their indices: float32, or uint8 pixels."""

    def __len__(self) -> int:
        return len(self.labels) * (2 if self.mirrored else 1)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices, dtype=torch.long) % len(self) % len(self.labels)
        return self.batch(_as_float(self.read(indices)), self.labels[index])

    def measured(self) -> InMemorySplit:
        if self._for_metrics is None:
            chosen = torch.arange(len(self.labels))
            if len(chosen) > self.metric_samples:
                chosen = torch.randperm(len(chosen), generator=generator_for(0))[: self.metric_samples].sort().values
            parts = tqdm(chosen.split(_READ_AT_ONCE), desc="reading samples", disable=len(chosen) <= PROGRESS_BAR_FROM)
            x = torch.cat([self.read(part.tolist()) for part in parts])
            self._for_metrics = InMemorySplit(x, self.labels[chosen])
        return self._for_metrics

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_for_metrics": None}  # worker processes read for themselves


def _as_float(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()
