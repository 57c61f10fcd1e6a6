"""Forward processes x_t = alpha(t) x_0 + sigma(t) eps, and the time at which a path reaches a noise-to-signal ratio.

Inside the package everything lives in variance-exploding coordinates x = x_t / alpha, sigma = sigma_t / alpha
(Karras et al. 2022, arXiv 2206.00364); a path is needed only where a network speaks its own language.
"""

from fdistill.theory.paths.base import NOISE_ALONE, FromRate, NoiseRange, Path, VariancePreserving
from fdistill.theory.paths.cosine import VPCosine
from fdistill.theory.paths.ddpm import DDPMPath
from fdistill.theory.paths.exploding import VarianceExploding
from fdistill.theory.paths.kinetic_optimal import KineticOptimal
from fdistill.theory.paths.linear import VPLinear
from fdistill.theory.paths.rectified_flow import RectifiedFlow
from fdistill.theory.paths.scaled_linear import ScaledLinear
from fdistill.theory.paths.trig_flow import TrigFlow

__all__ = [
    "NOISE_ALONE",
    "DDPMPath",
    "FromRate",
    "KineticOptimal",
    "NoiseRange",
    "Path",
    "RectifiedFlow",
    "ScaledLinear",
    "TrigFlow",
    "VPCosine",
    "VPLinear",
    "VarianceExploding",
    "VariancePreserving",
]
