"""A Frechet distance of the samples' own values that stays cheap at any size: of at most 256 numbers a sample.

The distance of Gaussian fits costs O(d^3), minutes at CIFAR's d = 3,072 and hours at 64 x 64. Up to 256 values a sample
nothing is left out. Larger samples are projected: their values are dealt in turn into 256 groups, and each group is
summed with random signs (a count sketch: Charikar, Chen and Farach-Colton 2002; feature hashing, arXiv 0902.2206). That
is a projection on 256 orthogonal directions in O(d), the same in every run. Averaging neighbouring pixels would cost as
little and be blind to noise and blur, which is what a poor generator makes; random signs see every frequency. The
distance is multiplied by d / 256, so that a shift of the mean counts as much, on
average, as in all d values.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fdistill.core.distributed import all_ranks, world_size
from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.blocks import ROWS
from fdistill.evaluation.metrics.frechet_distance import Moments, distance_of_moments, merged, moments_of

PROJECTED = 256


class Projection:
    """Samples to rows of at most 256 numbers; see the file's first lines.

    Args:
        sample_shape: of one sample, d values.

    Attributes:
        width: of a row, min(d, 256).
        factor: what a squared distance is multiplied by: d / 256, or 1 where nothing is projected.
    """

    def __init__(self, sample_shape: Sequence[int]) -> None:
        d = math.prod(sample_shape)
        self.width = min(d, PROJECTED)
        self.factor = max(1.0, d / PROJECTED)
        self._signs: Tensor | None = None
        if d > PROJECTED:
            self._signs = torch.randint(0, 2, (d,), generator=generator_for(0)) * 2.0 - 1
            self._signs /= torch.tensor([len(range(i % PROJECTED, d, PROJECTED)) for i in range(d)]).sqrt()
            self._padding = -d % PROJECTED

    def __call__(self, x: Tensor) -> Tensor:
        """Rows [n, min(d, 256)] of samples [n, *sample_shape]."""
        x = x.flatten(1)
        if self._signs is None:
            return x
        signed = torch.nn.functional.pad(x.float() * self._signs.to(x.device), (0, self._padding))
        return signed.view(len(x), -1, PROJECTED).sum(1)


class PixelMoments:
    """Mean and covariance of projected samples, added in blocks of 1,024 rows; memory does not grow with their number.

    Args:
        sample_shape: of one sample.
        device: where the sums are kept, in float64 (float32 on MPS, which has no other).
    """

    def __init__(self, sample_shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.sample_shape, self.device = tuple(sample_shape), torch.device(device)
        self.projection = Projection(self.sample_shape)
        self._dtype = torch.float32 if self.device.type == "mps" else torch.float64
        # fewer than a block are kept, so that sums do not depend on how samples were divided
        self._rows = torch.zeros(0, self.projection.width, device=self.device)
        self._moments: Moments | None = None

    def add(self, x: Tensor) -> None:
        """Add samples [n, *sample_shape]."""
        rows = torch.cat([self._rows, self.projection(x.detach().to(self.device))])
        whole = len(rows) // ROWS * ROWS
        for start in range(0, whole, ROWS):
            self._moments = self._with(rows[start : start + ROWS])
        self._rows = rows[whole:].clone()

    def total(self) -> Moments:
        """The moments of all samples, of all ranks, each of which has to ask; ranks exchange sums and no samples.

        Raises:
            ValueError: for fewer than two samples, or a NaN or an infinity.
        """
        if world_size() == 1:
            return self.of_this_rank()
        width, mine = self.projection.width, self._so_far()
        empty = torch.zeros(1 + width + width**2, dtype=self._dtype, device=self.device)
        rows = all_ranks(empty if mine is None else mine.to_row())
        parts = [Moments.from_row(row) for row in rows if row[0]]
        return _checked(merged(parts) if parts else None)

    def of_this_rank(self) -> Moments:
        """The moments of the samples that this rank added; errors as `total`."""
        return _checked(self._so_far())

    def _so_far(self) -> Moments | None:
        return self._with(self._rows) if len(self._rows) else self._moments

    def _with(self, rows: Tensor) -> Moments:
        block = moments_of(rows.to(self._dtype))
        return block if self._moments is None else self._moments.merge(block)


def _checked(moments: Moments | None) -> Moments:
    """The moments on the CPU."""
    count = 0 if moments is None else int(moments.count)
    if moments is None or count < 2 or not moments.scatter.isfinite().all():
        got = f"{count} samples" + (", some of them broken" if count > 1 else "")
        raise ValueError(
            f"a Frechet distance compares Gaussian fits: expected 2 samples or more, all finite, got {got}; "
            "look where they are made"
        )
    return Moments(*(part.cpu() for part in moments))


def pixel_frechet_distance(generated: Moments, real: Moments, sample_shape: Sequence[int]) -> Tensor:
    """Return the squared distance of two totals of `PixelMoments` of one sample_shape, a float64 scalar in [0, inf).

    Exactly `frechet_distance` of the flattened values up to 256 of them. It is biased upwards by about d / n.
    """
    return distance_of_moments(generated, real) * Projection(sample_shape).factor
