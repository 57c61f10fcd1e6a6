"""A batch, and a split of a data set that lies in memory and hands out whole batches at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Batch(NamedTuple):
    """Samples and their class (or mode) indices; ``labels`` are all 0 where the data has no classes."""

    x: Tensor  # [B, *sample_shape] float32, images in [-1, 1]
    labels: Tensor  # [B] int64 in [0, num_classes)


class InMemorySplit(Dataset[Batch]):
    """Samples in memory, fetched by one ``index_select`` per batch.

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

    def __len__(self) -> int:
        return len(self.x) * (2 if self.mirrored else 1)

    def __getitem__(self, index: int) -> Batch:
        """Return sample ``index`` without its batch dimension."""
        batch = self.__getitems__([index])
        return Batch(batch.x[0], batch.labels[0])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the samples with these indices, in this order; a DataLoader calls this once per batch."""
        index = torch.as_tensor(indices, dtype=torch.long)
        mirror = index >= len(self.x)  # never true unless mirrored: index_select refuses the index
        index = index - len(self.x) * mirror if self.mirrored else index
        x = _as_float(self.x.index_select(0, index))
        if self.mirrored:
            x = torch.where(mirror.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)
        return Batch(x, self.labels.index_select(0, index))

    def whole(self) -> Batch:
        """Return all N samples in order, without mirror images."""
        return Batch(_as_float(self.x), self.labels)

    def std(self) -> float:
        """Return the standard deviation over all entries of all samples (divisor: the number of entries)."""
        mean = sum(float(_as_float(chunk).double().sum()) for chunk in self.x.split(4096)) / self.x.numel()
        squares = sum(float((_as_float(chunk).double() - mean).square().sum()) for chunk in self.x.split(4096))
        return (squares / self.x.numel()) ** 0.5


def _as_float(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()
