"""Data parallelism for turns in which networks alternate: all of them on every rank, or in parts."""

from fdistill.training.parallel.replicated import ReplicatedStrategy
from fdistill.training.parallel.sharded import ShardedStrategy

__all__ = ["ReplicatedStrategy", "ShardedStrategy"]
