"""Gradients that cross the network compressed, and the memory of what was left out of them."""

from fdistill.training.parallel.compression.base import Compression
from fdistill.training.parallel.compression.half import BFloat16
from fdistill.training.parallel.compression.low_rank import PowerSGD
from fdistill.training.parallel.compression.sparse import EF21, TopK

__all__ = ["EF21", "BFloat16", "Compression", "PowerSGD", "TopK"]
