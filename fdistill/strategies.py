"""Data parallelism for turns in which networks alternate."""

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry


class ReplicatedStrategy(DDPStrategy):
    """Every rank holds all networks; equal weights at the start, and each turn's gradients averaged in one all-reduce.

    Plain DDP expects every parameter in every backward pass, which alternating turns break. Here nothing is wrapped:
    `GenerativeModule.guarded_step` averages the gradients of the networks that move. In YAML: ``strategy: replicated``.
    """

    strategy_name = "replicated"

    def configure_ddp(self) -> None:
        """Copy rank 0's parameters and buffers to all ranks."""
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            dist.broadcast(tensor.data, src=0)


StrategyRegistry.register(
    ReplicatedStrategy.strategy_name,
    ReplicatedStrategy,
    description=ReplicatedStrategy.__doc__.splitlines()[0],
    override=True,
)
