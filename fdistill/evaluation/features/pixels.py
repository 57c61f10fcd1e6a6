"""The values of the samples themselves: pixels, large images averaged down first, or the coordinates of points."""

import math

from torch import Tensor
from torch.nn import functional as F

from fdistill.evaluation.features.base import FeatureExtractor


class PixelFeatures(FeatureExtractor):
    """Flattened values.

    Args:
        max_values: images [C, H, W] of more values than this are averaged down to squares of at most as many; a
            covariance of more dimensions than 1024 takes minutes. Points keep all their coordinates.

    Raises:
        ValueError: if max_values is below 1.
    """

    def __init__(self, max_values: int = 1024) -> None:
        super().__init__()
        if max_values < 1:
            raise ValueError(f"max_values of an image: expected >= 1, got {max_values}")
        self.max_values = max_values

    @property
    def what(self) -> str:
        if len(self.sample_shape) != 3:
            return f"all {math.prod(self.sample_shape)} coordinates"
        side = self._side(self.sample_shape)
        return "pixel values" if side is None else f"pixels averaged down to {side} x {side}"

    def raw_features(self, x: Tensor) -> Tensor:
        side = self._side(x.shape[1:])
        return (x if side is None else F.adaptive_avg_pool2d(x, side)).flatten(1)

    def _side(self, shape: tuple[int, ...]) -> int | None:
        """Pixels along an image that is averaged down; None for any that stays as it is."""
        if len(shape) != 3 or math.prod(shape) <= self.max_values:
            return None
        return max(1, int((self.max_values / shape[0]) ** 0.5))
