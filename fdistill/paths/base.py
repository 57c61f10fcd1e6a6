"""A forward process x_t = alpha(t) x_0 + sigma(t) eps, and the time at which it reaches a noise-to-signal ratio."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fdistill.described import Described


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
