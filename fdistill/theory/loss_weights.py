"""Weights of the denoising loss as functions of the signal-to-noise ratio, whatever the network predicts.

S = alpha^2 / sigma^2 on a path, 1 / sigma^2 in variance-exploding coordinates. A weight is stated once, as that of
|eps - eps_hat|^2; the same loss in any other form of the prediction follows. What training emphasises is the weight
times the density of the noise levels (arXiv 2303.00848), which `fdistill.theory.noise_levels` states apart.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fdistill.core.spec import Described
from fdistill.theory.preconditioning import Preconditioning


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2: unit weight on EDM's raw output (arXiv 2206.00364)."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


class LossWeight(Described, ABC):
    """A positive weight for every noise level; all methods are elementwise.

    snr is S > 0 and sigma = S^-1/2 > 0 the noise level in variance-exploding coordinates.
    """

    @abstractmethod
    def eps(self, snr: Tensor) -> Tensor:
        """The weight w of |eps - eps_hat|^2."""

    def x0(self, snr: Tensor) -> Tensor:
        """Of |x_0 - x_0_hat|^2: S w."""
        return snr * self.eps(snr)

    def v(self, snr: Tensor) -> Tensor:
        """Of |v - v_hat|^2, v = alpha eps - sigma x_0 on a variance-preserving path: S / (1 + S) w."""
        return self.eps(snr) / (1 + 1 / snr)

    def velocity(self, snr: Tensor) -> Tensor:
        """Of |u - u_hat|^2, u = eps - x_0 of rectified flow: (1 - t)^2 w at its time t = sigma / (1 + sigma)."""
        return self.eps(snr) / (1 + snr.rsqrt()).square()

    def denoiser(self, sigma: Tensor) -> Tensor:
        """Of |x_0 - D(x, sigma)|^2: w / sigma^2."""
        return self.x0(sigma.square().reciprocal())

    def network(self, sigma: Tensor, preconditioning: Preconditioning) -> Tensor:
        """Of the raw output's squared error: that of the denoiser times c_out^2."""
        return self.denoiser(sigma) * preconditioning.coefficients(sigma).out.square()

    def penalty(self, sigma: Tensor) -> Tensor:
        """What a weight that learns adds to the loss so that it cannot vanish; 0 for all others."""
        return torch.zeros_like(sigma)


class ConstantEps(LossWeight):
    """1 on eps, DDPM's simple loss (arXiv 2006.11239)."""

    def eps(self, snr: Tensor) -> Tensor:
        return torch.ones_like(snr)


class ConstantX0(LossWeight):
    """1 on x_0: 1 / S."""

    def eps(self, snr: Tensor) -> Tensor:
        return 1 / snr


class ConstantVelocity(LossWeight):
    """1 on the velocity of rectified flow (arXiv 2209.03003): (1 + S^-1/2)^2."""

    def eps(self, snr: Tensor) -> Tensor:
        return (1 + snr.rsqrt()).square()


class EDMWeight(LossWeight):
    """1 on EDM's raw output (arXiv 2206.00364): 1 + 1 / (S sigma_data^2)."""

    def __init__(self, sigma_data: float = 0.5) -> None:
        """Args:
        sigma_data: standard deviation of the data over all entries, > 0.
        """
        _check_positive("sigma_data", sigma_data)
        self.sigma_data = sigma_data

    def eps(self, snr: Tensor) -> Tensor:
        return self.denoiser(snr.rsqrt()) / snr

    def denoiser(self, sigma: Tensor) -> Tensor:
        return edm_weight(sigma, self.sigma_data)


class ConstantV(EDMWeight):
    """1 on v (arXiv 2202.00512): 1 + 1 / S, EDM's weight for data of unit variance."""

    def __init__(self) -> None:
        super().__init__(sigma_data=1.0)


class TruncatedSNR(LossWeight):
    """max(1, 1 / S): on x_0 never less than 1 (arXiv 2202.00512)."""

    def eps(self, snr: Tensor) -> Tensor:
        return (1 / snr).clamp_min(1)


class MinSNR(LossWeight):
    """min(1, gamma / S): on x_0 never more than gamma (arXiv 2303.09556)."""

    def __init__(self, gamma: float = 5.0) -> None:
        """Args:
        gamma: signal-to-noise ratio above which the weight falls, > 0.
        """
        _check_positive("gamma", gamma)
        self.gamma = gamma

    def eps(self, snr: Tensor) -> Tensor:
        return (self.gamma / snr).clamp_max(1)


class P2(LossWeight):
    """(k + S)^-gamma (arXiv 2204.00227); k = gamma = 1 is a soft Min-SNR, S / (1 + S) on x_0."""

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        """Args:
        k: signal-to-noise ratio above which the weight falls, > 0.
        gamma: how fast it falls, >= 0; 0 is a constant weight on eps.
        """
        _check_positive("k", k)
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma of P2 is finite and at least 0: got {gamma}")
        self.k, self.gamma = k, gamma

    def eps(self, snr: Tensor) -> Tensor:
        return (self.k + snr).pow(-self.gamma)


class Sigmoid(LossWeight):
    """e^bias / (e^bias + S): the sigmoid of bias - ln S (arXiv 2303.00848)."""

    def __init__(self, bias: float = 0.0) -> None:
        """Args:
        bias: logarithm of the signal-to-noise ratio at which the weight is 1/2, finite.
        """
        if not math.isfinite(bias):
            raise ValueError(f"bias of Sigmoid is finite: got {bias}")
        self.bias = bias

    def eps(self, snr: Tensor) -> Tensor:
        return (self.bias - snr.log()).sigmoid()


class Debias(LossWeight):
    """S^-1/2 (arXiv 2310.08442): an error of eps counts by what it does to x_0_hat = x_0 + (eps - eps_hat) S^-1/2."""

    def __init__(self, snr_min: float = 1e-4, snr_max: float = 1e3) -> None:
        """Args:
        snr_min: S is not taken below it, >= 0.
        snr_max: nor above it, > snr_min; the cosine path of 1000 steps begins at 24,221.
        """
        if not 0 <= snr_min < snr_max:
            raise ValueError(f"Debias clamps S to 0 <= snr_min < snr_max: got {snr_min} and {snr_max}")
        self.snr_min, self.snr_max = snr_min, snr_max

    def eps(self, snr: Tensor) -> Tensor:
        return snr.clamp(self.snr_min, self.snr_max).rsqrt()


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} of a loss weight is finite and positive: got {value}")
