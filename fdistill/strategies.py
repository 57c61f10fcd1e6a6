"""Data parallelism for turns in which networks alternate."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.distributed.distributed_c10d import _set_pg_timeout

from fdistill.distributed import in_touch

_PATIENCE = timedelta(minutes=30)  # at the start, and at barriers, where all wait for one that writes a checkpoint


class ReplicatedStrategy(DDPStrategy):
    """Every rank holds all networks; equal weights at the start, and each turn's gradients averaged in one all-reduce.

    Plain DDP expects every parameter in every backward pass, which alternating turns break. Here nothing is wrapped:
    `GenerativeModule.guarded_step` averages the gradients of the networks that move. In YAML: ``strategy: replicated``.

    A rank that dies or hangs ends the others with one line: at once where its connection breaks (gloo), else after
    `timeout_s`. The limit holds from the second turn on: ranks start, compile and load at their own pace.
    """

    strategy_name = "replicated"

    def __init__(self, timeout_s: float = 50.0, **kwargs: Any) -> None:
        """Args:
        timeout_s: seconds that a rank waits for another one in a turn, > 0; half an hour at the start and at barriers.
        kwargs: of DDPStrategy.
        """
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is how long a rank waits for another and positive: got {timeout_s} seconds")
        kwargs.setdefault("timeout", _PATIENCE)
        super().__init__(**kwargs)
        self.timeout_s, self._turns_begun = timeout_s, 0

    def configure_ddp(self) -> None:
        """Copy rank 0's parameters and buffers to all ranks."""
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            dist.broadcast(tensor.data, src=0)

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


StrategyRegistry.register(
    ReplicatedStrategy.strategy_name,
    ReplicatedStrategy,
    description=ReplicatedStrategy.__doc__.splitlines()[0],
    override=True,
)
