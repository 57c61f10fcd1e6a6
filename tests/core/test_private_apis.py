"""Private names of other libraries: each is still there, and none is used that the list does not have."""

import ast
import importlib
import inspect
import re
import tomllib

import pytest
from repository import ROOT

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

TREES = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "fdistill").rglob("*.py")]
PUBLIC = {"_replace", "_asdict", "_fields", "_exit"}  # of named tuples, and of os, as Python documents them


def resolve(name):
    """What a dotted name of `USED` stands for."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part) and isinstance(found, type) and f"self.{part}" in inspect.getsource(found):
                return part  # an attribute of its objects
            found = getattr(found, part)
        return found
    raise ImportError(name)


def test_every_private_name_is_still_there():
    vanished = []
    for name in USED:
        try:
            resolve(name)
        except (ImportError, AttributeError):
            vanished.append(name)
    assert vanished == []


def test_a_name_that_vanished_is_found():
    with pytest.raises(AttributeError):
        resolve("torch.distributed.distributed_c10d._of_another_version")


def private(name):
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def own_names():
    """Private names that the package itself defines: functions, classes, variables, attributes, fields."""
    for node in (node for tree in TREES for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def used_names():
    """Private names that the package reads of objects, or imports."""
    for node in (node for tree in TREES for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and private(node.attr):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("fdistill"):
            yield from (part for part in node.module.split(".") if private(part))
            yield from (alias.name for alias in node.names if private(alias.name))


def test_no_other_private_name_is_used():
    listed = {part for name in USED for part in name.split(".")}
    assert set(used_names()) - set(own_names()) - listed == set()


def test_every_library_with_private_names_in_use_has_an_upper_bound():
    needed = {re.match(r"[\w-]+", one).group(): one for one in tomllib_dependencies()}
    for library in {name.split(".")[0] for name in USED}:
        assert "<" in needed[library], needed[library]


def tomllib_dependencies():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
