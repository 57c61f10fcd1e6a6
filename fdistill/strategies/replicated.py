"""All networks on every rank, and the gradients of those that move averaged once a turn."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout

from fdistill.compression import Compression
from fdistill.distributed import average_gradients, in_touch, same_on_all_ranks
from fdistill.weightless import loading_drops, make_room

_MEMORY = "compression"  # key of a checkpoint
_PATIENCE = timedelta(minutes=30)  # at the start, and at barriers, where all wait for one that writes a checkpoint


class ReplicatedStrategy(DDPStrategy):
    """Every rank holds all networks; equal weights at the start, and each turn's gradients averaged in one all-reduce.

    Plain DDP expects every parameter in every backward pass, which alternating turns break. Here nothing is wrapped:
    `GenerativeModule.guarded_step` averages the gradients of the networks that move. In YAML: ``strategy: replicated``.

    A rank that dies or hangs ends the others with one line: at once where its connection breaks (gloo), else after
    `timeout_s`. The limit holds from the second turn on: ranks start, compile and load at their own pace.
    """

    strategy_name = "replicated"

    def __init__(self, compression: Compression | None = None, timeout_s: float = 50.0, **lightning: Any) -> None:
        """Args:
        compression: of the gradients between the ranks; its memory is in every checkpoint. None sends all of them.
        timeout_s: seconds that a rank waits for another one in a turn, > 0; half an hour at the start and at barriers.
        lightning: of Lightning's DDPStrategy.
        """
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is how long a rank waits for another and positive: got {timeout_s} seconds")
        lightning.setdefault("timeout", _PATIENCE)
        super().__init__(**lightning)
        self.compression = compression
        self.timeout_s, self._turns_begun = timeout_s, 0

    def model_to_device(self) -> None:
        """With room for the weights that only rank 0 has yet."""
        make_room(self.model, self.root_device)
        super().model_to_device()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """On a rank without numbers its buffers alone; the weights come from rank 0."""
        with loading_drops():
            super().load_model_state_dict(checkpoint, strict)

    def configure_ddp(self) -> None:
        """Copy rank 0's parameters and buffers to all ranks."""
        same_on_all_ranks(self.model)

    def average_gradients(self, networks: Mapping[str, nn.Module]) -> None:
        """Replace the gradients of the networks by their mean over the ranks, or by the compressed one."""
        if self.compression is not None:
            with in_touch():
                self.compression.average(networks)
            return
        for network in networks.values():
            average_gradients(network.parameters())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Become impatient when the first turn has shown that all ranks are there."""
        self._turns_begun += 1
        if self._turns_begun == 2:
            _set_pg_timeout(timedelta(seconds=self.timeout_s))

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all ranks, also for one that has work of its own to do before."""
        with in_touch(), self._patient():
            super().barrier(*args, **kwargs)

    @contextmanager
    def _patient(self) -> Iterator[None]:
        if self._turns_begun < 2:
            yield
            return
        _set_pg_timeout(_PATIENCE)
        try:
            yield
        finally:
            if dist.is_initialized():
                _set_pg_timeout(timedelta(seconds=self.timeout_s))

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
