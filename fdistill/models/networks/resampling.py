"""Halving and doubling a feature map through a separable filter, as the networks of arXiv 2011.13456 do."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Filter(nn.Module):
    """The outer product of a filter with itself, of sum 1; [1, 1, n, n], no part of a checkpoint."""

    def __init__(self, taps: Sequence[float]) -> None:
        """Args:
        taps: the filter in one dimension, an even number of weights.
        """
        super().__init__()
        if not taps or len(taps) % 2 or not sum(taps):
            raise ValueError(f"a resampling filter has an even number of weights that do not cancel: got {list(taps)}")
        row = torch.tensor(taps, dtype=torch.float32)
        self.kernel: Tensor
        self.register_buffer("kernel", torch.outer(row, row)[None, None] / row.sum().square(), persistent=False)

    def _for(self, x: Tensor) -> Tensor:
        return self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)


class Downsample(_Filter):
    """[B, C, H, W] to [B, C, H/2, W/2]."""

    def __init__(self, taps: Sequence[float], padded: bool = True) -> None:
        """Args:
        taps: [1, 1] is the mean of two pixels, [1, 3, 3, 1] is smoother.
        padded: whether zeros are put around x; not where a convolution before it has put them.
        """
        super().__init__(taps)
        self.margin = (len(taps) - 1) // 2
        self.padding = self.margin if padded else 0

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self._for(x), stride=2, padding=self.padding, groups=x.shape[1])


class Upsample(_Filter):
    """[B, C, H, W] to [B, C, 2 H, 2 W], the mean kept."""

    def __init__(self, taps: Sequence[float]) -> None:
        """Args:
        taps: [1, 1] repeats each pixel, [1, 3, 3, 1] interpolates.
        """
        super().__init__(taps)
        self.padding = (len(taps) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, 4 * self._for(x), stride=2, padding=self.padding, groups=x.shape[1])
