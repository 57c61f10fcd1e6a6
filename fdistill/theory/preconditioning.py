"""From the raw output of a network, whatever it predicts, to the denoised image: D = skip x + out F(input x, noise).

x and sigma are in variance-exploding coordinates; on a path, sigma = sigma_t / alpha_t and x_t = alpha_t x. Every
row of the conversion table (eps, v, x0, velocity, EDM) is linear in x and F, so four coefficients say all.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.core.spec import Described
from fdistill.theory.paths import NoiseRange, Path, RectifiedFlow, VariancePreserving


class Coefficients(NamedTuple):
    """The four functions of sigma, each with sigma's shape [B]."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


class Preconditioning(Described, ABC):
    """How one kind of network becomes a denoiser."""

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Coefficients at sigma > 0, [B]."""

    @property
    def noise_range(self) -> NoiseRange:
        """The noise levels that such a network knows; outside, a path's time stands still or leaves [0, 1]."""
        return NoiseRange()


class EDM(Preconditioning):
    """Karras et al. 2022, table 1; the noise input is ln(sigma)/4."""

    def __init__(self, sigma_data: float = 0.5) -> None:
        """Args:
        sigma_data: standard deviation of the data over all entries, > 0.
        """
        if not sigma_data > 0:
            raise ValueError(f"sigma_data is the standard deviation of the data and positive: got {sigma_data}")
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> Coefficients:
        total = (sigma.square() + self.sigma_data**2).sqrt()
        return Coefficients(
            skip=(self.sigma_data / total).square(),
            out=sigma * self.sigma_data / total,
            input=1 / total,
            noise=sigma.log() / 4,
        )


class ConsistencyEDM(EDM):
    """EDM for consistency models with a boundary above 0: D(x, sigma_min) = x (Song et al. 2023, arXiv 2303.01469, C).

    skip = sigma_data^2 / ((sigma - sigma_min)^2 + sigma_data^2), out = (sigma - sigma_min) sigma_data / total.
    """

    def __init__(self, sigma_data: float = 0.5, sigma_min: float = 0.002) -> None:
        """Args:
        sigma_data: standard deviation of the data over all entries, > 0.
        sigma_min: where D is the identity, >= 0; at 0 it is EDM.
        """
        super().__init__(sigma_data)
        if not sigma_min >= 0:
            raise ValueError(f"sigma_min is a noise level from 0 on: got {sigma_min}")
        self.sigma_min = sigma_min

    def coefficients(self, sigma: Tensor) -> Coefficients:
        edm, above = super().coefficients(sigma), sigma - self.sigma_min
        skip = self.sigma_data**2 / (above.square() + self.sigma_data**2)
        return edm._replace(skip=skip, out=above * self.sigma_data * edm.input)


class VEScorePrediction(Preconditioning):
    """Song et al. 2021's VE column of table 1 in Karras et al. 2022: D = x + sigma F(x, ln(sigma / 2)).

    F is sigma times the score, minus the predicted noise.
    """

    def coefficients(self, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return Coefficients(skip=one, out=sigma, input=one, noise=(sigma / 2).log())


class _OnPath(Preconditioning):
    """A network that sees x_t = alpha_t x and time_scale times the path's own time (1000 for DDPM indices)."""

    def __init__(self, path: Path, time_scale: float = 1.0) -> None:
        """Args:
        path: forward process the network was trained on.
        time_scale: the network's time input is time_scale * t.
        """
        self.path, self.time_scale = path, time_scale

    @property
    def noise_range(self) -> NoiseRange:
        return self.path.noise_range

    def _at(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self.path.scales(sigma), self.time_scale * self.path.time(sigma)


class EpsPrediction(_OnPath):
    """F predicts the noise eps: D = (x_t - sigma_t F) / alpha_t."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        alpha, _, time = self._at(sigma)
        return Coefficients(skip=torch.ones_like(sigma), out=-sigma, input=alpha, noise=time)


class VPrediction(_OnPath):
    """F predicts v = alpha_t eps - sigma_t x_0 on a variance-preserving path: D = alpha_t x_t - sigma_t F."""

    def __init__(self, path: VariancePreserving, time_scale: float = 1.0) -> None:
        """Args:
        path: a variance-preserving forward process.
        time_scale: the network's time input is time_scale * t.
        """
        if not isinstance(path, VariancePreserving):
            raise ValueError(f"v-prediction is defined on variance-preserving paths: got {type(path).__name__}")
        super().__init__(path, time_scale)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        alpha, sigma_t, time = self._at(sigma)
        return Coefficients(skip=alpha.square(), out=-sigma_t, input=alpha, noise=time)


class X0Prediction(_OnPath):
    """F predicts the clean image: D = F."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        alpha, _, time = self._at(sigma)
        return Coefficients(skip=torch.zeros_like(sigma), out=torch.ones_like(sigma), input=alpha, noise=time)


class VelocityPrediction(_OnPath):
    """F predicts the velocity u = d/dt (alpha_t x_0 + sigma_t eps): D = (sigma'_t x_t - sigma_t F) / W.

    W = alpha_t sigma'_t - alpha'_t sigma_t > 0. On rectified flow u = eps - x_0 and D = x_t - t F.
    """

    def __init__(self, time_scale: float = 1.0, path: Path | None = None) -> None:
        """Args:
        time_scale: the network's time input is time_scale * t.
        path: forward process whose velocity it is; rectified flow where not given.
        """
        super().__init__(RectifiedFlow() if path is None else path, time_scale)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        t = self.path.time(sigma)
        alpha, sigma_t = self.path.scales(sigma)
        alpha_slope, sigma_slope = self.path.derivatives(t)
        turning = alpha * sigma_slope - alpha_slope * sigma_t
        return Coefficients(
            skip=sigma_slope * alpha / turning, out=-sigma_t / turning, input=alpha, noise=self.time_scale * t
        )


class Direct(Preconditioning):
    """D(sigma z, sigma) = F(z): F is a generator, which has no noise level; sigma is without effect."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
        return Coefficients(skip=zero, out=one, input=1 / sigma, noise=zero)


class TrigFlowPrediction(EDM):
    """Simplified consistency models (arXiv 2410.11081): D = cos(t) x_t - sin(t) sigma_data F(x_t / sigma_data, t).

    t = atan(sigma / sigma_data) is in radians, x_t = cos(t) x. It is EDM with the sign of F turned and another noise
    input; `VelocityPrediction` on `TrigFlow` is the same flow at unit time and unscaled input and output.
    """

    def __init__(self, sigma_data: float = 0.5, time_scale: float = 1.0) -> None:
        """Args:
        sigma_data: standard deviation of the data over all entries, > 0.
        time_scale: the network's time input is time_scale * t.
        """
        super().__init__(sigma_data)
        self.time_scale = time_scale

    def coefficients(self, sigma: Tensor) -> Coefficients:
        edm = super().coefficients(sigma)
        return edm._replace(out=-edm.out, noise=self.time_scale * torch.atan(sigma / self.sigma_data))
