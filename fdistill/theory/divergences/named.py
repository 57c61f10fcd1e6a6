"""The divergences with a name and no parameter, from mode seeking to mode covering."""

import torch
from torch import Tensor

from fdistill.theory.divergences.base import FDivergence


class ReverseKL(FDivergence):
    """KL(q||p): mode seeking, weight 1, no ratio needed. This is Diff-Instruct and DMD."""

    needs_ratio = False

    def f(self, r: Tensor) -> Tensor:
        return -r.log()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return torch.ones_like(log_ratio)


class SoftenedReverseKL(FDivergence):
    """Mode seeking with a weight 1/(1+r) that fades where the teacher is far denser than the student."""

    def f(self, r: Tensor) -> Tensor:
        return (r + 1) * (0.5 + 0.5 / r).log()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return (-log_ratio).sigmoid()


class JensenShannon(FDivergence):
    """KL(p||m) + KL(q||m) with m the even mixture of p and q; the weight r/(1+r) is bounded by 1."""

    def f(self, r: Tensor) -> Tensor:
        return r * r.log() - (1 + r) * ((1 + r) / 2).log()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.sigmoid()


class SquaredHellinger(FDivergence):
    """1 - E_q[sqrt r], half the squared Hellinger distance between the densities; weight sqrt(r)/4."""

    def f(self, r: Tensor) -> Tensor:
        return 1 - r.sqrt()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return (log_ratio / 2).exp() / 4


class ForwardKL(FDivergence):
    """KL(p||q): mode covering, unbounded weight r."""

    def f(self, r: Tensor) -> Tensor:
        return r * r.log()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.exp()


class Jeffreys(FDivergence):
    """KL(p||q) + KL(q||p); weight 1 + r."""

    def f(self, r: Tensor) -> Tensor:
        return (r - 1) * r.log()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return 1 + log_ratio.exp()


class NeymanChiSquared(FDivergence):
    """int (p-q)^2 / p; infinite where q has much heavier tails than p (Gaussians: var q >= 2 var p); weight 2/r."""

    def f(self, r: Tensor) -> Tensor:
        return (1 - r).square() / r

    def weight(self, log_ratio: Tensor) -> Tensor:
        return 2 * (-log_ratio).exp()


class PearsonChiSquared(FDivergence):
    """int (p-q)^2 / q; the strongest mode covering of the family and the noisiest gradient; weight 2 r^2."""

    def f(self, r: Tensor) -> Tensor:
        return (r - 1).square()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return 2 * (2 * log_ratio).exp()
