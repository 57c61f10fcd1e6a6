"""TrigFlow, the quarter circle from sample to noise of the data's own scale (arXiv 2410.11081)."""

import math

import torch
from torch import Tensor

from fdistill.theory.paths.base import Path


class TrigFlow(Path):
    """alpha = cos(pi t / 2), sigma = sigma_data sin(pi t / 2); the paper's time, in radians, is pi t / 2."""

    def __init__(self, sigma_data: float = 1.0) -> None:
        """Args:
        sigma_data: standard deviation of the data, > 0, which x_t then has at every t.
        """
        if not sigma_data > 0:
            raise ValueError(f"sigma_data is the standard deviation of the data and positive: got {sigma_data}")
        self.sigma_data = sigma_data

    def alpha(self, t: Tensor) -> Tensor:
        return (math.pi / 2 * (1 - t)).sin()  # 0 at t = 1, where the cosine rounds to either side of it

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_data * (math.pi / 2 * t).sin()

    def time(self, noise_ratio: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(noise_ratio / self.sigma_data)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -math.pi / 2 / self.sigma_data * self.sigma(t), math.pi / 2 * self.sigma_data * self.alpha(t)
