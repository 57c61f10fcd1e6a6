"""The cosine path, a quarter turn from sample to noise after a small offset (arXiv 2102.09672)."""

import math

import torch
from torch import Tensor

from fdistill.theory.paths.base import VariancePreserving


class VPCosine(VariancePreserving):
    """alpha = cos(angle(t)) / cos(angle(0)), angle = pi/2 (t + offset) / (1 + offset) (arXiv 2102.09672)."""

    def __init__(self, offset: float = 0.008) -> None:
        """Args:
        offset: keeps the first noise levels from being too small, in [0, 1).
        """
        if not 0 <= offset < 1:
            raise ValueError(f"offset of VPCosine lies in [0, 1): got {offset}")
        self.offset = offset

    def alpha(self, t: Tensor) -> Tensor:
        cosine = (t * self._speed + self._first).cos()
        return cosine.clamp_min(0) / math.cos(self._first)  # at t = 1 it may round below 0

    def sigma(self, t: Tensor) -> Tensor:
        turn = t * self._speed  # sin^2 angle - sin^2 first = sin(angle - first) sin(angle + first)
        return (turn.sin() * (turn + 2 * self._first).sin()).clamp_min(0).sqrt() / math.cos(self._first)

    def time(self, noise_ratio: Tensor) -> Tensor:
        # the angle turned since t = 0, by sums of positive terms: acos(alpha) loses small times in single precision
        length = torch.hypot(noise_ratio, torch.ones_like(noise_ratio))
        first_cosine, first_sine = math.cos(self._first), math.sin(self._first)
        cosine, gain = first_cosine / length, (first_cosine * noise_ratio / length).square()
        sine = (first_sine**2 + gain).sqrt()
        smallest = torch.finfo(gain.dtype).tiny  # offset 0 at time 0
        turned_sine = gain / (sine * first_cosine + cosine * first_sine).clamp_min(smallest)
        return torch.atan2(turned_sine, cosine * first_cosine + sine * first_sine) / self._speed

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        turn, scale = t * self._speed, self._speed / math.cos(self._first)
        if self._first == 0:
            return -scale * turn.sin(), scale * turn.cos()  # sigma is the sine, and not the root of a product
        slope = (2 * turn + 2 * self._first).sin() / (2 * math.cos(self._first) * self.sigma(t))
        return -scale * (turn + self._first).sin(), scale * slope

    @property
    def _speed(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    @property
    def _first(self) -> float:
        return self._speed * self.offset
