"""Rectified flow, the straight line from sample to noise (arXiv 2209.03003)."""

import torch
from torch import Tensor

from fdistill.theory.paths.base import Path


class RectifiedFlow(Path):
    """The straight line alpha = 1 - t, sigma = t (arXiv 2209.03003)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, noise_ratio: Tensor) -> Tensor:
        return noise_ratio / (1 + noise_ratio)

    def scales(self, noise_ratio: Tensor) -> tuple[Tensor, Tensor]:
        total = 1 + noise_ratio  # 1 - t would lose all digits of a small alpha
        return 1 / total, noise_ratio / total

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)
