"""f-divergences D_f(p||q) = E_q[f(r)], r = p/q teacher over student, and their gradient's weight h(r) = r^2 f''(r).

Source: f-distill (arXiv 2502.15681). Everything is evaluated from ``log_ratio`` = ln r, so that no weight overflows
before its divergence does. The convention is theirs: the textbook Jensen-Shannon divergence is half of
`JensenShannon`.
"""

from fdistill.theory.divergences.alpha import AlphaDivergence
from fdistill.theory.divergences.base import FDivergence, WeightSlopes
from fdistill.theory.divergences.bregman import Bregman, BregmanLogistic, BregmanPower
from fdistill.theory.divergences.changing import AnnealedAlpha, ChangingDivergence, WarmStart
from fdistill.theory.divergences.named import (
    ForwardKL,
    Jeffreys,
    JensenShannon,
    NeymanChiSquared,
    PearsonChiSquared,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
)
from fdistill.theory.divergences.skewed import SkewedJensenShannon, UniformlySkewedJensenShannon, skewed_weight

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
