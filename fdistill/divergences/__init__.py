"""f-divergences D_f(p||q) = E_q[f(r)], r = p/q teacher over student, and their gradient's weight h(r) = r^2 f''(r).

Source: f-distill (arXiv 2502.15681). Everything is evaluated from ``log_ratio`` = ln r, so that no weight overflows
before its divergence does. The convention is theirs: the textbook Jensen-Shannon divergence is half of
`JensenShannon`.
"""

from fdistill.divergences.alpha import AlphaDivergence
from fdistill.divergences.base import FDivergence, WeightSlopes
from fdistill.divergences.bregman import Bregman, BregmanLogistic, BregmanPower
from fdistill.divergences.changing import AnnealedAlpha, ChangingDivergence, WarmStart
from fdistill.divergences.named import (
    ForwardKL,
    Jeffreys,
    JensenShannon,
    NeymanChiSquared,
    PearsonChiSquared,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
)
from fdistill.divergences.skewed import SkewedJensenShannon, UniformlySkewedJensenShannon, skewed_weight

__all__ = [
    "AlphaDivergence",
    "AnnealedAlpha",
    "Bregman",
    "BregmanLogistic",
    "BregmanPower",
    "ChangingDivergence",
    "FDivergence",
    "ForwardKL",
    "Jeffreys",
    "JensenShannon",
    "NeymanChiSquared",
    "PearsonChiSquared",
    "ReverseKL",
    "SkewedJensenShannon",
    "SoftenedReverseKL",
    "SquaredHellinger",
    "UniformlySkewedJensenShannon",
    "WarmStart",
    "WeightSlopes",
    "skewed_weight",
]
