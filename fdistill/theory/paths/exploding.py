"""The variance-exploding path, whose time is the noise level itself (arXiv 2206.00364)."""

import torch
from torch import Tensor

from fdistill.theory.paths.base import NoiseRange, Path


class VarianceExploding(Path):
    """alpha = 1, sigma = t."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, noise_ratio: Tensor) -> Tensor:
        return noise_ratio

    @property
    def noise_range(self) -> NoiseRange:
        """All: its time has no end."""
        return NoiseRange()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)
