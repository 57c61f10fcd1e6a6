"""Data parallelism for turns in which networks alternate: all of them on every rank, or in parts."""

from fdistill.strategies.replicated import ReplicatedStrategy
from fdistill.strategies.sharded import ShardedStrategy

__all__ = ["ReplicatedStrategy", "ShardedStrategy"]
