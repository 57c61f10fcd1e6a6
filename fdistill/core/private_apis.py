"""What this package uses of other libraries although it is private there, in one place.

Each library has an upper bound in pyproject.toml, and `tests/core/test_private_apis.py` names what a new version lacks.
"""

from datetime import timedelta
from typing import Any

import torch
from torch import nn

USED = {
    # no public function changes how long an existing group waits
    "torch.distributed.distributed_c10d._set_pg_timeout": "distributed",
    # FSDP2 lists forward passes without a backward pass for ever
    "torch.distributed.fsdp.FSDPModule._get_fsdp_state": "strategies",
    "torch.distributed.fsdp._fully_shard._fsdp_state.FSDPState._comm_ctx": "strategies",
    "torch.distributed.fsdp._fully_shard._fsdp_param_group.FSDPParamGroup._post_forward_indices": "strategies",
    # attention that keeps no matrix of scores, which the public function does not choose on the meta device
    "torch.ops.aten._scaled_dot_product_efficient_attention": "planning",
    # one kernel for all weights
    "torch._foreach_lerp_": "averages",
    # whether somebody wrote to a weight
    "torch.Tensor._version": "networks",
    # what a layer does before its weights are saved and after they are loaded
    "torch.nn.Module._save_to_state_dict": "networks",
    "torch.nn.Module._load_from_state_dict": "networks",
    # a turn without numbers, and what it costs
    "torch.nn.Module._apply": "planning",
    "torch.utils._python_dispatch.TorchDispatchMode": "planning",
    "torch.utils._pytree.tree_leaves": "planning",
    "torch._ops.OpOverload._overloadpacket": "planning",
    "torch.UntypedStorage._cdata": "planning",
    # a class of ours as a tree of tensors
    "torch.utils._pytree.MappingKey": "conditions",
    "torch.utils._pytree.register_pytree_node": "conditions",
    # several backward passes through one compiled graph
    "torch._functorch.config.donated_buffer": "fast networks",
    # a module whose parts move to the device by themselves
    "lightning.fabric.utilities.device_dtype_mixin._update_properties": "strategies",
    "lightning.pytorch.strategies.DDPStrategy._get_process_group_backend": "strategies",
    # whether the trainer would divide the data again
    "lightning.pytorch.Trainer._accelerator_connector": "data",
    "lightning.pytorch.trainer.connectors.accelerator_connector._AcceleratorConnector.use_distributed_sampler": "data",
    # a module without trainer; its property raises there
    "lightning.pytorch.LightningModule._trainer": "modules",
    # saving between Lightning's own moments
    "lightning.pytorch.callbacks.ModelCheckpoint._save_checkpoint": "callbacks",
    "lightning.pytorch.callbacks.ModelCheckpoint._save_last_checkpoint": "callbacks",
    "lightning.pytorch.callbacks.ModelCheckpoint._last_global_step_saved": "callbacks",
    "lightning.pytorch.callbacks.ModelCheckpoint._every_n_train_steps": "callbacks",
    # what the command line reads before the classes are built
    "lightning.pytorch.cli.LightningCLI._parse_ckpt_path": "command line",
    "lightning.pytorch.cli.LightningCLI._get": "command line",
    # what makes ${...} of several files find each other
    "jsonargparse._optionals.get_omegaconf_loader": "command line",
    # states of metrics that add over ranks
    "torchmetrics.Metric._sync_dist": "metrics",
    "torchmetrics.Metric._defaults": "metrics",
    "torchmetrics.Metric._is_synced": "metrics",
}
"""Each private name, and where it is used; an attribute of an object stands under its class."""


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
