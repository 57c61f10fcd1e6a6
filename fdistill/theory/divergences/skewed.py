"""The divergences of score-of-mixture training (arXiv 2502.09609): Jensen-Shannon with uneven shares, one or many."""

import numpy as np
import torch
from torch import Tensor

from fdistill.theory.divergences.base import FDivergence

_NEAR = 0.02  # |ln r| below which the mean weight is a series: its closed form is 0/0 at r = 1
_TERMS = 10  # of that series, whose argument is at most 0.0202 there: the first one left out is below 1e-17
_NODES, _SHARES = (torch.from_numpy(array) / 2 for array in np.polynomial.legendre.leggauss(64))  # on [-1/2, 1/2]


def skewed_weight(log_ratio: Tensor, skew: Tensor | float) -> Tensor:
    """r / (skew r + 1 - skew) elementwise: the weight of `SkewedJensenShannon`, with a skew of its own per sample.

    Args:
        log_ratio: ln r.
        skew: the teacher's share of the mixture, in [0, 1] (not checked here); a number or broadcastable to log_ratio.

    Returns:
        The weight, of log_ratio's dtype; differentiable in log_ratio.
    """
    if not isinstance(skew, Tensor):
        skew = torch.full((), skew, dtype=torch.float64, device=log_ratio.device)  # a copy would have the host wait
    skew = skew.double()  # 1 - skew must not round
    alone = skew == 0  # forward KL, where a sigmoid would be 0/0
    skew = torch.where(alone, 1.0, skew)
    mixed = (log_ratio + skew.logit().to(log_ratio.dtype)).sigmoid() / skew.to(log_ratio.dtype)
    return torch.where(alone, torch.where(alone, log_ratio, 0).exp(), mixed)


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
        return skewed_weight(log_ratio, self.skew)


class UniformlySkewedJensenShannon(FDivergence):
    """The mean of `SkewedJensenShannon` over a skew ~ U[low, high], in closed form.

    weight = r/(r-1) ln((1 + high (r-1)) / (1 + low (r-1))) / (high - low): what drawing a skew for every sample and
    taking its `skewed_weight` has for a mean, without the draw's variance. Good for |ln r| up to 700.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        """Args:
        low: smallest share of the teacher in the mixture, >= 0.
        high: largest share, > low and <= 1.
        """
        if not 0 <= low < high <= 1:
            raise ValueError(f"skews of UniformlySkewedJensenShannon are 0 <= low < high <= 1: got {low} and {high}")
        self.low, self.high = low, high

    def f(self, r: Tensor) -> Tensor:
        """The double integral of f'' = weight / r^2 from 1: int_0^{ln r} (r e^-v - 1) weight(v) dv, by 64 Gauss nodes.

        The weight is analytic in |Im ln r| < pi: within 1e-12 for r in [1e-6, 1e6].
        """
        end = r.log()[..., None]
        v = end * (_NODES.to(end) + 0.5)
        return ((end - v).expm1() * self.weight(v) * end * _SHARES.to(end)).sum(-1)

    def weight(self, log_ratio: Tensor) -> Tensor:
        wide = log_ratio.double()
        near = wide.abs() < _NEAR
        log_r, width = torch.where(near, 1.0, wide), self.high - self.low
        # z >= 0 on either side of r = 1: mixtures at `low` and `high` differ by the factor 1 + z
        distance = width * (-log_r).expm1().abs()
        z = distance * skewed_weight(log_r, torch.where(log_r > 0, torch.full_like(log_r, self.low), self.high))
        closed = z.log1p() / distance
        log_r = torch.where(near, wide, 0)
        edge = skewed_weight(log_r, self.low)
        y = -width * (-log_r).expm1() * edge
        series = edge * sum((-y) ** k / (k + 1) for k in range(_TERMS))
        return torch.where(near, series, closed).to(log_ratio.dtype)
