"""Data parallelism for turns in which networks alternate: all of them on every rank, or what learns sharded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from fdistill.compression import Compression
from fdistill.denoiser import Denoiser
from fdistill.distributed import average_gradients, in_touch, whole, world_size
from fdistill.networks import EDM2UNet, TwoExperts

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

    def configure_ddp(self) -> None:
        """Copy rank 0's parameters and buffers to all ranks."""
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            dist.broadcast(tensor.data, src=0)

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


class ShardedStrategy(ReplicatedStrategy):
    """Each network that learns is sharded on its own (FSDP2), with gradients and optimiser; the others are not.

    Weights are gathered for each pass of a network and dropped after it. Teacher and average stay whole, because
    callbacks sample from them on one rank or in unequal batches; so do discriminators, which are small. Checkpoints
    hold whole tensors and continue under any strategy. In YAML: ``strategy: sharded``.
    """

    strategy_name = "sharded"

    def __init__(self, **lightning: Any) -> None:
        """Args:
        lightning: of Lightning's DDPStrategy.
        """
        super().__init__(None, **lightning)

    def configure_ddp(self) -> None:
        """Copy rank 0's parameters and buffers to all ranks, and keep a part of what learns on each.

        Raises:
            ValueError: for networks whose passes FSDP2 would spoil.
        """
        learning = {name: child for name, child in self.model.named_children() if _is_sharded(child)}
        for name, denoiser in learning.items():
            if isinstance(denoiser.network, EDM2UNet | TwoExperts):
                raise ValueError(
                    f"a sharded network neither writes its weights while it is asked nor leaves some of them out: "
                    f"expected another {name} than {type(denoiser.network).__name__}, or --trainer.strategy replicated"
                )
        if getattr(self.model, "r1_weight", 0) and self.model.reads == "fake_score" and self.model.r1_step == 0:
            raise ValueError(
                "sharded weights have no second derivatives, which the exact R1 penalty on features of the fake score "
                "asks for: set r1_step > 0 (0.1, say), got 0"
            )
        super().configure_ddp()
        mesh = init_device_mesh(self.root_device.type, (world_size(),))
        for denoiser in learning.values():
            fully_shard(denoiser, mesh=mesh)
            for half in ("encode", "finish"):
                register_fsdp_forward_method(denoiser, half)

    def average_gradients(self, networks: Mapping[str, nn.Module]) -> None:
        """Those of what is not sharded; the others are averaged in the backward pass."""
        super().average_gradients({name: part for name, part in networks.items() if not _is_sharded(part)})

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, on the CPU; every rank has to ask."""
        return {name: _saved(value) for name, value in super().lightning_module_state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The same of an optimiser."""
        state = super().optimizer_state(optimizer)
        moments = {index: {name: _saved(v) for name, v in held.items()} for index, held in state["state"].items()}
        return {**state, "state": moments}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """From whole tensors, of which each rank keeps its part."""
        states = [
            {**state, "state": _sharded_like(optimizer, state["state"])}
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        ]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})


def _is_sharded(part: nn.Module) -> bool:
    return isinstance(part, Denoiser) and any(parameter.requires_grad for parameter in part.parameters())


def _saved(value: Any) -> Any:
    return whole(value).cpu() if isinstance(value, DTensor) else value


def _sharded_like(optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """An optimiser's memory of each parameter, sharded as the parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: {name: _part(v, parameters[index]) for name, v in held.items()} for index, held in state.items()}


def _part(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


for _strategy in (ReplicatedStrategy, ShardedStrategy):
    StrategyRegistry.register(
        _strategy.strategy_name,
        _strategy,
        description=_strategy.__doc__.splitlines()[0],
        override=True,
    )
