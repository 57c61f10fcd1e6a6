"""Bregman divergences of the ratio rho = q/p from 1 (Di-Bregman, arXiv 2510.16983), written as f-divergences.

B_h = E_p[h(rho) - h(1) - h'(1)(rho - 1)] = E_q[f(r)] with f(r) = r (h(1/r) - h(1)), since E_p[rho - 1] = 0. The weight
of the student's gradient is rho h''(rho), which is r^2 f''(r) at rho = 1/r.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from fdistill.theory.divergences.base import FDivergence, second_derivative


class Bregman(FDivergence):
    """A strictly convex h of the ratio rho = q/p, student over teacher. Writing `h` is enough."""

    @abstractmethod
    def h(self, rho: Tensor) -> Tensor:
        """h(rho) elementwise for rho > 0, made of differentiable torch operations."""

    def f(self, r: Tensor) -> Tensor:
        return r * (self.h(1 / r) - self.h(torch.ones_like(r)))

    def weight(self, log_ratio: Tensor) -> Tensor:
        rule = f"h of a Bregman divergence is strictly convex: {type(self).__name__}"
        rho, second = second_derivative(self.h, -log_ratio, rule)
        return (rho * second).to(log_ratio.dtype)


class BregmanPower(Bregman):
    """Basu's power divergence: weight rho^beta = r^-beta, that of `AlphaDivergence` (-beta).

    h = (rho^(1+beta) - (1+beta) rho + beta) / (beta (1+beta)). beta 1 is least squares, (rho - 1)^2 / 2; its limit 0
    Kullback-Leibler, rho ln rho (reverse KL); its limit -1 Itakura-Saito, -ln rho (forward KL). The scaled Basu
    divergence (SBA) of arXiv 2505.19601 is a quarter of this, up to terms linear in rho.
    """

    def __init__(self, beta: float = 1.0) -> None:
        """Args:
        beta: any finite real number; smaller covers more modes.
        """
        if not math.isfinite(beta):
            raise ValueError(f"beta of BregmanPower is a finite number: got {beta}")
        self.beta = beta
        self.needs_ratio = beta != 0

    def h(self, rho: Tensor) -> Tensor:
        b = self.beta
        if b == 0:
            return rho * rho.log() - rho + 1
        if b == -1:
            return rho - 1 - rho.log()
        return (rho ** (1 + b) - (1 + b) * rho + b) / (b * (1 + b))

    def weight(self, log_ratio: Tensor) -> Tensor:
        return (-self.beta * log_ratio).exp()


class BregmanLogistic(Bregman):
    """h of logistic regression, rho ln rho - (1 + rho) ln(1 + rho); weight r/(1+r): the same as `JensenShannon`."""

    def h(self, rho: Tensor) -> Tensor:
        return rho * rho.log() - (1 + rho) * (1 + rho).log()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.sigmoid()
