"""Data parallelism for turns in which networks alternate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from fdistill.compression import Compression
from fdistill.distributed import average_gradients

_MEMORY = "compression"  # key of a checkpoint


class ReplicatedStrategy(DDPStrategy):
    """Every rank holds all networks; equal weights at the start, and each turn's gradients averaged in one all-reduce.

    Plain DDP expects every parameter in every backward pass, which alternating turns break. Here nothing is wrapped:
    `GenerativeModule.guarded_step` averages the gradients of the networks that move. In YAML: ``strategy: replicated``.
    """

    strategy_name = "replicated"

    def __init__(self, compression: Compression | None = None, **lightning: Any) -> None:
        """Args:
        compression: of the gradients between the ranks; its memory is in every checkpoint. None sends all of them.
        lightning: of Lightning's DDPStrategy.
        """
        super().__init__(**lightning)
        self.compression = compression

    def configure_ddp(self) -> None:
        """Copy rank 0's parameters and buffers to all ranks."""
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            dist.broadcast(tensor.data, src=0)

    def average_gradients(self, networks: Mapping[str, nn.Module]) -> None:
        """Replace the gradients of the networks by their mean over the ranks, or by the compressed one."""
        if self.compression is not None:
            self.compression.average(networks)
            return
        for network in networks.values():
            average_gradients(network.parameters())

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Path | str, storage_options: Any | None = None
    ) -> None:
        """With what the compression of every rank remembers."""
        if self.compression is not None:
            checkpoint[_MEMORY] = self.compression.state_dict()
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """With what this rank's compression remembers, where it is the same as then."""
        super().load_optimizer_state_dict(checkpoint)
        saved, own = checkpoint.get(_MEMORY), None if self.compression is None else self.compression.spec()
        if saved is not None and saved["spec"] == own:
            self.compression.load_state_dict(saved)
        elif saved is not None:
            rank_zero_warn(
                f"the gradients' compression changed from {saved['spec']} to {own}: what it had left out is lost"
            )


StrategyRegistry.register(
    ReplicatedStrategy.strategy_name,
    ReplicatedStrategy,
    description=ReplicatedStrategy.__doc__.splitlines()[0],
    override=True,
)
