"""A forward process x_t = alpha(t) x_0 + sigma(t) eps, and the time at which it reaches a noise-to-signal ratio."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.core.spec import Described

NOISE_ALONE = 1e8
"""A noise level that stands for infinity: in single precision the time of a straight path is 1 there."""

_NO_SIGNAL = 1e12  # noise ratio of a path that ends without signal, but for rounding
_ROUNDING = 1e-5  # relative, at both ends: a level that was printed with six digits may be typed again


class NoiseRange(NamedTuple):
    """Noise levels from low to high, both inside; all of them unless it says otherwise."""

    low: float = 0.0
    high: float = math.inf

    def first_outside(self, levels: Iterable[float]) -> float | None:
        """The first level below low or above high by more than rounding; None where there is none."""
        low, high = self.low * (1 - _ROUNDING), self.high * (1 + _ROUNDING)
        return next((level for level in levels if not low <= level <= high), None)

    def check(self, name: str, levels: Iterable[float]) -> None:
        """Raises ValueError where a level lies outside; `name` says what they are."""
        found = self.first_outside(levels)
        if found is not None:
            raise ValueError(
                f"{name} is to lie on the path that the network knows, outside of which it is told the wrong time: "
                f"expected noise levels from {self.low:.6g} to {self.high:.6g}, got {found:.6g}; choose one of these"
            )

    def shared(self, *others: "NoiseRange") -> "NoiseRange":
        """What lies in this range and in all others; low is above high where nothing does."""
        return NoiseRange(max(self.low, *(o.low for o in others)), min(self.high, *(o.high for o in others)))


class Path(Described, ABC):
    """alpha and sigma as functions of time; ``time`` inverts sigma(t) / alpha(t). All elementwise on tensors."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale in (0, 1], for t in [0, 1] (VarianceExploding: any t >= 0); a path may end at 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale >= 0."""

    @abstractmethod
    def time(self, noise_ratio: Tensor) -> Tensor:
        """The t with sigma(t) / alpha(t) = noise_ratio >= 0."""

    def noise_ratio(self, t: Tensor) -> Tensor:
        """sigma(t) / alpha(t): the noise level in variance-exploding coordinates."""
        return self.sigma(t) / self.alpha(t)

    def scales(self, noise_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma where sigma / alpha = noise_ratio."""
        t = self.time(noise_ratio)
        return self.alpha(t), self.sigma(t)

    @property
    def noise_range(self) -> NoiseRange:
        """The noise levels between t = 0 and t = 1, where a network on this path was trained."""
        low, high = self.noise_ratio(torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")).tolist()
        return NoiseRange(low, high if high < _NO_SIGNAL else math.inf)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt), by forward differentiation where a path gives no closed form.

        sigma may start as the root of t: its derivative is then infinite at t = 0.
        """
        one = torch.ones_like(t)
        return torch.func.jvp(self.alpha, (t,), (one,))[1], torch.func.jvp(self.sigma, (t,), (one,))[1]


class VariancePreserving(Path):
    """Base of the paths with alpha^2 + sigma^2 = 1."""

    def sigma(self, t: Tensor) -> Tensor:
        alpha = self.alpha(t)
        return ((1 - alpha) * (1 + alpha)).clamp_min(0).sqrt()


class FromRate(VariancePreserving):
    """alpha = exp(-1/2 int_0^t beta), for a rate of noise beta > 0 (arXiv 2011.13456)."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """beta(t)."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """int_0^t beta."""

    @abstractmethod
    def time_of_integral(self, integral: Tensor) -> Tensor:
        """The t with int_0^t beta = integral >= 0."""

    def alpha(self, t: Tensor) -> Tensor:
        return (-self.integral(t) / 2).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self.integral(t))).sqrt()

    def time(self, noise_ratio: Tensor) -> Tensor:
        return self.time_of_integral(torch.log1p(noise_ratio.square()))

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, half = self.alpha(t), self.rate(t) / 2
        return -half * alpha, half * alpha.square() / self.sigma(t)
