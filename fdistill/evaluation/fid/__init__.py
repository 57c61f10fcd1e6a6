"""FID and its relatives as the literature computes them: standard networks, unscaled features, streamed samples."""

from fdistill.evaluation.fid.measure import FidSuite, Measured
from fdistill.evaluation.fid.networks import StandardNetwork, clip, dinov2, inception
from fdistill.evaluation.fid.reference import Reference, Statistics, open_reference, training_reference

__all__ = [
    "FidSuite",
    "Measured",
    "Reference",
    "StandardNetwork",
    "Statistics",
    "clip",
    "dinov2",
    "inception",
    "open_reference",
    "training_reference",
]
