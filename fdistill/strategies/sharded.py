"""Networks in parts: FSDP2 keeps a share of each on every rank, and gathers it block by block where it is asked."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from fdistill.denoiser import Denoiser
from fdistill.distributed import in_touch, part_of, rank, same_on_all_ranks, whole, world_size
from fdistill.ema import EMA
from fdistill.networks import EDM2UNet, TwoExperts
from fdistill.strategies.replicated import ReplicatedStrategy
from fdistill.weightless import make_room

_TEACHERS = ("teacher", "guide")  # what a distillation reads and does not move


class ShardedStrategy(ReplicatedStrategy):
    """Each network is sharded on its own (FSDP2): what learns, with gradients and optimiser, its average, the teacher.

    A network lies on the device in parts; for each pass its blocks are gathered one after another and dropped behind
    it (`Network.units`). The average moves part by part. Whoever samples on one rank, or in unequal batches, gathers
    the network first (`fdistill.distributed.gathered`). Discriminators and reward networks are small and stay whole.
    Under bf16-mixed, what learns is gathered in bf16, and its gradients are reduced in float32. Checkpoints hold whole
    tensors and continue under any strategy. In YAML: ``strategy: sharded``.
    """

    strategy_name = "sharded"

    def __init__(self, shard_teacher: bool = True, cpu_offload: bool = False, **lightning: Any) -> None:
        """Args:
        shard_teacher: whether teacher and guide are sharded too, and gathered for each of their passes.
        cpu_offload: whether the parts, with gradients and optimisers, lie in the memory of the CPU, where the
            optimisers step.
        lightning: of `ReplicatedStrategy` and Lightning's DDPStrategy; gradients are not compressed.
        """
        super().__init__(None, **lightning)
        self.shard_teacher, self.cpu_offload = shard_teacher, cpu_offload
        self._sharded: dict[str, Denoiser] = {}

    def shards(self, module: nn.Module) -> dict[str, Denoiser]:
        """The networks of a module that are kept in parts, by the names of its children; "ema" is the average.

        Raises:
            ValueError: for networks whose passes FSDP2 would spoil.
        """
        found = {name: _network_of(child) for name, child in module.named_children()}
        left_out = () if self.shard_teacher else _TEACHERS
        found = {name: net for name, net in found.items() if net is not None and name not in left_out}
        for name in sorted(found, key=lambda name: not _learns(found[name])):  # what learns cannot stay whole
            _check_network(name, found[name])
        _check_penalty(module, found)
        return found

    def model_to_device(self) -> None:
        """All but what is sharded, whose parts come to the device one after another in `configure_ddp`."""
        if self._is_fitting:
            for child in self._small_children():
                make_room(child, self.root_device)
                child.to(self.root_device)
            _update_properties(self.model, device=self.root_device)
        else:
            super().model_to_device()

    def configure_ddp(self) -> None:
        """Take rank 0's parameters and buffers, and keep a part of each network."""
        for child in self._small_children():
            same_on_all_ranks(child)
        mesh = init_device_mesh(self.root_device.type, (world_size(),))
        mixed = self.precision_plugin.precision == "bf16-mixed"
        in_bf16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        on_cpu = CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda")
        self._sharded = self.shards(self.model)
        for name, network in self._sharded.items():
            gathered_as = in_bf16 if mixed and self.gathers_in_bf16(self.model, name) else MixedPrecisionPolicy()
            kept = on_cpu if self.cpu_offload else OffloadPolicy()
            _shard(network, mesh, self.root_device, gathered_as, kept)

    def _get_process_group_backend(self) -> str:
        """One that sums numbers of the CPU too, where parts lie there."""
        backend = super()._get_process_group_backend()
        return "cpu:gloo,cuda:nccl" if self.cpu_offload and backend == "nccl" else backend

    @property
    def _is_fitting(self) -> bool:
        return self.lightning_module.trainer.state.fn == TrainerFn.FITTING

    def _small_children(self) -> list[nn.Module]:
        """What is whole on every rank."""
        sharded = self.shards(self.model)
        return [child for name, child in self.model.named_children() if name not in sharded]

    def gathers_in_bf16(self, module: nn.Module, name: str) -> bool:
        """Whether bf16-mixed gathers this network of `shards` so: where every pass is under autocast.

        That is what learns, if R1 does not read its features, in float32. A teacher is gathered as it is held.
        """
        read_by_r1 = getattr(module, "r1_weight", 0) and module.reads == name
        return _learns(getattr(module, name)) and not read_by_r1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Forget the passes of the turn before."""
        super().on_train_batch_start(batch, batch_idx)
        for network in self._sharded.values():
            _forget_passes(network)

    def average_gradients(self, networks: Mapping[str, nn.Module]) -> None:
        """Those of what is not sharded; the others are averaged in the backward pass."""
        super().average_gradients({name: part for name, part in networks.items() if not isinstance(part, Denoiser)})

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, on the CPU of rank 0; every rank has to ask."""
        return {name: _saved(value) for name, value in super().lightning_module_state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The same of an optimiser."""
        state = super().optimizer_state(optimizer)
        moments = {index: {name: _saved(v) for name, v in held.items()} for index, held in state["state"].items()}
        return {**state, "state": moments}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """From whole tensors, of which each rank keeps its part, beside its part of the weights."""
        states = [
            {**state, "state": _sharded_like(optimizer, state["state"])}
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        ]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})
        for parameter, held in ((p, h) for optimizer in self.optimizers for p, h in optimizer.state.items()):
            held |= {name: v.to(parameter.device) for name, v in held.items() if isinstance(v, DTensor)}


def _network_of(child: nn.Module) -> Denoiser | None:
    """The denoiser, itself or averaged, that a child of the module is; None for others, and for one without weights."""
    network = child.average if isinstance(child, EMA) else child
    return network if isinstance(network, Denoiser) and any(True for _ in network.parameters()) else None


def _learns(network: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in network.parameters())


def _check_network(name: str, denoiser: Denoiser) -> None:
    network, remedy = denoiser.network, "--trainer.strategy replicated"
    if _learns(denoiser) and isinstance(network, EDM2UNet | TwoExperts):
        raise ValueError(
            f"a sharded network neither writes its weights while it is asked nor leaves some of them out: "
            f"expected another {name} than {type(network).__name__}, or {remedy}"
        )
    if any(parameter.ndim == 0 for parameter in network.parameters()):
        raise ValueError(
            f"FSDP2 shards no weight that is a single number: expected another {name} than {type(network).__name__}, "
            f"{'shard_teacher false, ' if name in _TEACHERS else ''}or {remedy}"
        )


def _check_penalty(module: nn.Module, sharded: Mapping[str, Denoiser]) -> None:
    reads = getattr(module, "reads", None)
    if reads in sharded and module.r1_weight and module.r1_step == 0:
        remedy = ", or shard_teacher false" if reads == "teacher" else ""
        raise ValueError(
            f"sharded weights have no second derivatives, which the exact R1 penalty on features of the {reads} asks "
            f"for: set r1_step > 0 (0.1, say){remedy}, got 0"
        )


def _shard(
    denoiser: Denoiser, mesh: DeviceMesh, device: torch.device, gathered_as: MixedPrecisionPolicy, kept: OffloadPolicy
) -> None:
    """Replace the weights by this rank's part of rank 0's; one block is whole on the device at a time."""
    for unit in (*denoiser.network.units(), denoiser):
        make_room(unit, device)
        for tensor in (*unit.parameters(), *unit.buffers()):
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)
                with in_touch():
                    dist.broadcast(tensor.data, src=0)
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=gathered_as, offload_policy=kept)
    for half in ("encode", "finish"):
        register_fsdp_forward_method(denoiser, half)


def _forget_passes(denoiser: nn.Module) -> None:
    """FSDP2 lists the forward passes that a backward pass may have to undo; a network that has none grows its list."""
    order = getattr(denoiser._get_fsdp_state()._comm_ctx, "post_forward_order", [])  # there is none before the first
    for group in order:
        group._post_forward_indices.clear()
    order.clear()


def _saved(value: Any) -> Any:
    """A whole tensor on the CPU of rank 0; the others, which save nothing, keep their part of it."""
    if not isinstance(value, DTensor):
        return value
    complete = whole(value)
    return complete.cpu() if rank() == 0 else value


def _sharded_like(optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """An optimiser's memory of each parameter, sharded as the parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: {name: _part(v, parameters[index]) for name, v in held.items()} for index, held in state.items()}


def _part(value: Any, parameter: Tensor) -> Any:
    fits = isinstance(value, Tensor) and value.shape == parameter.shape
    return part_of(value, parameter) if fits else value


StrategyRegistry.register(
    ShardedStrategy.strategy_name,
    ShardedStrategy,
    description=ShardedStrategy.__doc__.splitlines()[0],
    override=True,
)
