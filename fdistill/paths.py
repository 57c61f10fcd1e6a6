"""Forward processes x_t = alpha(t) x_0 + sigma(t) eps, and the time at which a path reaches a noise-to-signal ratio.

Inside the package everything lives in variance-exploding coordinates x = x_t / alpha, sigma = sigma_t / alpha
(Karras et al. 2022, arXiv 2206.00364); a path is needed only where a network speaks its own language.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fdistill.described import Described


class Path(Described, ABC):
    """alpha and sigma as functions of time; ``time`` inverts sigma(t) / alpha(t). All elementwise on tensors."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale in (0, 1], for t in [0, 1] (VarianceExploding: any t >= 0)."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale >= 0."""

    @abstractmethod
    def time(self, noise_ratio: Tensor) -> Tensor:
        """The t with sigma(t) / alpha(t) = noise_ratio >= 0."""

    def noise_ratio(self, t: Tensor) -> Tensor:
        """sigma(t) / alpha(t): the noise level in variance-exploding coordinates."""
        return self.sigma(t) / self.alpha(t)


class VarianceExploding(Path):
    """alpha = 1, sigma = t."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, noise_ratio: Tensor) -> Tensor:
        return noise_ratio


class VariancePreserving(Path):
    """Base of the paths with alpha^2 + sigma^2 = 1."""

    def sigma(self, t: Tensor) -> Tensor:
        alpha = self.alpha(t)
        return ((1 - alpha) * (1 + alpha)).clamp_min(0).sqrt()


class VPLinear(VariancePreserving):
    """beta(t) linear from beta_min to beta_max, alpha = exp(-1/2 int beta): the VP-SDE (arXiv 2011.13456)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        """Args:
        beta_min: rate at t = 0, > 0.
        beta_max: rate at t = 1, > beta_min.
        """
        if not 0 < beta_min < beta_max:
            raise ValueError(f"VPLinear needs 0 < beta_min < beta_max: got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def alpha(self, t: Tensor) -> Tensor:
        return self._half_log_variance(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._half_log_variance(t))).sqrt()

    def time(self, noise_ratio: Tensor) -> Tensor:
        integral = torch.log1p(noise_ratio.square())  # int_0^t beta = slope t^2 / 2 + beta_min t
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())

    def _half_log_variance(self, t: Tensor) -> Tensor:
        return -(self.beta_max - self.beta_min) * t.square() / 4 - self.beta_min * t / 2


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
        return (t * self._speed + self._first).cos() / math.cos(self._first)

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

    @property
    def _speed(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    @property
    def _first(self) -> float:
        return self._speed * self.offset


class RectifiedFlow(Path):
    """The straight line alpha = 1 - t, sigma = t (arXiv 2209.03003)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, noise_ratio: Tensor) -> Tensor:
        return noise_ratio / (1 + noise_ratio)
