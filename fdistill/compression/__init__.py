"""Gradients that cross the network compressed, and the memory of what was left out of them."""

from fdistill.compression.base import Compression
from fdistill.compression.half import BFloat16
from fdistill.compression.low_rank import PowerSGD
from fdistill.compression.sparse import EF21, TopK

__all__ = ["EF21", "BFloat16", "Compression", "PowerSGD", "TopK"]
