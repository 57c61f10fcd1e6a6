"""The alpha family: one number from mode seeking to mode covering."""

import math

from torch import Tensor

from fdistill.theory.divergences.base import FDivergence


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
