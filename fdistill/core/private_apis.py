"""What this package calls of other libraries although it is private there.

`tests/core/test_private_apis.py` lists every private name in use, and names what a new version of a library lacks. Each
library has an upper bound in pyproject.toml.
"""

from datetime import timedelta
from typing import Any

import torch
from torch import nn


def limit_waiting(limit: timedelta) -> None:
    """How long ranks wait for each other in the collectives of the job's own group, from now on."""
    from torch.distributed.distributed_c10d import _set_pg_timeout

    _set_pg_timeout(limit)


def forget_passes(sharded: Any) -> None:
    """Empty FSDP2's list of forward passes that a backward pass may have to undo; without a backward pass it grows."""
    order = getattr(sharded._get_fsdp_state()._comm_ctx, "post_forward_order", [])  # there is none before the first
    for group in order:
        group._post_forward_indices.clear()
    order.clear()


def set_device(module: nn.Module, device: torch.device) -> None:
    """Let a LightningModule whose children are moved one by one say that it is on a device."""
    from lightning.fabric.utilities.device_dtype_mixin import _update_properties

    _update_properties(module, device=device)


def divides_data(trainer: Any) -> bool:
    """Whether a Lightning trainer would divide what each rank loads among the ranks once more."""
    return getattr(getattr(trainer, "_accelerator_connector", None), "use_distributed_sampler", False)


def keep_buffers() -> None:
    """Let compiled graphs keep what several backward passes read."""
    from torch._functorch import config

    config.donated_buffer = False


def register_pytree(kind: type, flatten: Any, rebuild: Any, name: str) -> None:
    """Let torch see the tensors in objects of a class: while exporting, sharding and compiling.

    Args:
        kind: the class.
        flatten: from an object to its tensors and what else rebuilds it, which JSON can hold.
        rebuild: from these two to an object.
        name: of the class in exported programs.
    """
    from torch.utils._pytree import MappingKey, register_pytree_node

    def with_keys(value: Any) -> Any:
        tensors, names = flatten(value)
        return [(MappingKey(name), tensor) for name, tensor in zip(names, tensors, strict=True)], names

    register_pytree_node(kind, flatten, rebuild, serialized_type_name=name, flatten_with_keys_fn=with_keys)
