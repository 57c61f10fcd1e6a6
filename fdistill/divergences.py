"""f-divergences D_f(p||q) = E_q[f(r)], r = p/q teacher over student, and their gradient's weight h(r) = r^2 f''(r).

Source: f-distill (arXiv 2502.15681). Everything is evaluated from ``log_ratio`` = ln r, so that no weight overflows
before its divergence does. The convention is theirs: the textbook Jensen-Shannon divergence is half of
`JensenShannon`.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fdistill.described import Described


class FDivergence(Described, ABC):
    """A convex f with f(1) = 0. Writing `f` is enough; override `weight` where a closed form is shorter or safer.

    A constant multiple of f scales the student's gradient; a multiple of (r - 1) added to f changes nothing.
    """

    needs_ratio = True
    """False where the weight is the same for every ratio, so that nobody has to estimate one."""

    @abstractmethod
    def f(self, r: Tensor) -> Tensor:
        """f(r) elementwise for r > 0, made of differentiable torch operations."""

    def weight(self, log_ratio: Tensor) -> Tensor:
        """h(r) = r^2 f''(r) > 0 elementwise, without gradient; here by differentiating `f` twice."""
        with torch.enable_grad():
            r = log_ratio.detach().double().exp().requires_grad_()  # f'' of a large r is a difference of close numbers
            (first,) = torch.autograd.grad(self.f(r).sum(), r, create_graph=True)
            if not first.requires_grad:
                raise ValueError(f"f of a divergence is strictly convex: {type(self).__name__}.f is linear in r")
            (second,) = torch.autograd.grad(first.sum(), r)
        return (r.detach().square() * second).to(log_ratio.dtype)


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


class AlphaDivergence(FDivergence):
    """Weight r^alpha: 0 is reverse KL, 1 forward KL; 1/2, 2, -1 are Hellinger, Pearson, Neyman up to scale."""

    def __init__(self, alpha: float = 0.5) -> None:
        """Args:
        alpha: any finite real number; larger covers more modes and has more variance.
        """
        if not math.isfinite(alpha):
            raise ValueError(f"alpha of AlphaDivergence is a finite number: got {alpha}")
        self.alpha = alpha
        self.needs_ratio = alpha != 0

    def f(self, r: Tensor) -> Tensor:
        a = self.alpha
        if a == 0:
            return r - 1 - r.log()
        if a == 1:
            return r * r.log() - r + 1
        return (r**a - a * r + a - 1) / (a * (a - 1))

    def weight(self, log_ratio: Tensor) -> Tensor:
        return (self.alpha * log_ratio).exp()


class SkewedJensenShannon(FDivergence):
    """The divergence of score-of-mixture training: weight r / (skew r + 1 - skew).

    skew 1 is reverse KL, 0 forward KL, 1/2 twice `JensenShannon`.
    """

    def __init__(self, skew: float = 0.5) -> None:
        """Args:
        skew: the teacher's share of the mixture, in [0, 1].
        """
        if not 0 <= skew <= 1:
            raise ValueError(f"skew of SkewedJensenShannon is a share in [0, 1]: got {skew}")
        self.skew = skew
        self.needs_ratio = skew != 1

    def f(self, r: Tensor) -> Tensor:
        a = self.skew
        if a == 0:
            return r * r.log() - r + 1
        if a == 1:
            return r - 1 - r.log()
        mixture = a * r + 1 - a
        return (r * r.log() - mixture * mixture.log() / a) / (1 - a)

    def weight(self, log_ratio: Tensor) -> Tensor:
        a = self.skew
        if a == 1:
            return torch.ones_like(log_ratio)
        if a == 0:
            return log_ratio.exp()
        return (log_ratio + math.log(a / (1 - a))).sigmoid() / a
