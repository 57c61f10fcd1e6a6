"""All networks on every rank, and the gradients of those that move averaged once a turn."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from fdistill.core.distributed import (
    PATIENCE,
    average_gradients,
    in_touch,
    on_rank_0,
    patient,
    rank,
    same_on_all_ranks,
    wait_at_most,
    world_size,
)
from fdistill.core.meta_device import loading_drops, make_room
from fdistill.core.moved_names import todays_names
from fdistill.core.weight_files import CheckpointError
from fdistill.io.rank_parts import OWN, RankParts, parts_of, write_part
from fdistill.training.parallel.compression import Compression
from fdistill.training.parallel.compression.base import Memory

_MEMORY = "compression"  # key of a checkpoint


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
        timeout_s: seconds that a rank waits for another one in a turn, > 0; half an hour at the start, at barriers, and
            where a rank works alone or ranks have unequal work (`fdistill.core.distributed.on_rank_0`, `patient`).
        lightning: of Lightning's DDPStrategy.
        """
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is how long a rank waits for another and positive: got {timeout_s} seconds")
        self._patience = lightning.setdefault("timeout", PATIENCE)
        super().__init__(**lightning)
        self.compression = compression
        self.timeout_s, self._turns_begun = timeout_s, 0

    def setup_distributed(self) -> None:
        """Begin patiently, whatever a run before this one in the same process was."""
        super().setup_distributed()
        wait_at_most(self._patience)

    @property
    def _module(self) -> nn.Module:
        return cast(nn.Module, self.model)  # Lightning connects it before all that asks

    def model_to_device(self) -> None:
        """With room for the weights that only rank 0 has yet."""
        make_room(self._module, self.root_device)
        super().model_to_device()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """On a rank without numbers its buffers alone; the weights come from rank 0."""
        with loading_drops():
            super().load_model_state_dict(checkpoint, strict)

    def configure_ddp(self) -> None:
        """Copy rank 0's parameters and buffers to all ranks."""
        same_on_all_ranks(self._module)

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
            wait_at_most(timedelta(seconds=self.timeout_s))

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all ranks, also for one that has work of its own to do before."""
        with in_touch(), patient():
            super().barrier(*args, **kwargs)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Path | str, storage_options: Any | None = None
    ) -> None:
        """With what each rank keeps for itself, its compression's memory say, in its own file beside it."""
        if self.compression is not None:
            state = self.compression.state_dict()
            equal, own = _divided(state["memory"], self.compression.equal_on_ranks)
            checkpoint[_MEMORY] = {"spec": state["spec"], "memory": equal}
            checkpoint.setdefault(OWN, {}).update(own)
        write_part(checkpoint, filepath)
        write = super().save_checkpoint
        on_rank_0(lambda: write(checkpoint, filepath, storage_options))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """With what this rank's compression remembers, where it is the same as then.

        Raises:
            CheckpointError: where an earlier version wrote the memory of all ranks into the checkpoint itself.
        """
        super().load_optimizer_state_dict(checkpoint)
        saved, own = checkpoint.get(_MEMORY), None if self.compression is None else self.compression.spec()
        if saved is not None and self.compression is not None and todays_names(saved["spec"]) == own:
            if any(key not in self.compression.equal_on_ranks for held in saved["memory"].values() for key in held):
                raise CheckpointError(
                    "what a rank's compression remembers lies in a file of its own beside the checkpoint: got a "
                    "checkpoint of an earlier version, which holds that of all ranks; continue without compression, "
                    "whose memory is lost then"
                )
            memory = _joined(saved["memory"], _own_memory(parts_of(checkpoint)))
            self.compression.load_state_dict({"spec": own, "memory": memory})
        elif saved is not None:
            rank_zero_warn(
                f"the gradients' compression changed from {saved['spec']} to {own}: what it had left out is lost"
            )


def _divided(memory: dict[str, Memory], equal: tuple[str, ...]) -> tuple[dict[str, Memory], dict[str, Tensor]]:
    """Memory by network that is equal on all ranks, and this rank's own under `compression/<network>/<name>`."""
    once = {network: {key: v for key, v in held.items() if key in equal} for network, held in memory.items()}
    own = {f"{_MEMORY}/{n}/{key}": v for n, held in memory.items() for key, v in held.items() if key not in equal}
    return once, own


def _own_memory(parts: RankParts) -> dict[str, Tensor]:
    """What this rank remembers; the mean over the ranks that were, where they were more or fewer."""
    if parts.ranks == world_size():
        return parts.of(rank(), f"{_MEMORY}/")
    total = parts.of(0, f"{_MEMORY}/")
    for other in range(1, parts.ranks):
        total = {name: total[name] + value for name, value in parts.of(other, f"{_MEMORY}/").items()}
    return {name: value / parts.ranks for name, value in total.items()}


def _joined(equal: dict[str, Memory], own: dict[str, Tensor]) -> dict[str, Memory]:
    memory = {network: dict(held) for network, held in equal.items()}
    for name, value in own.items():
        network, key = name.split("/")
        memory[network][key] = value
    return memory


StrategyRegistry.register(
    ReplicatedStrategy.strategy_name,
    ReplicatedStrategy,
    description=str(ReplicatedStrategy.__doc__).splitlines()[0],
    override=True,
)
