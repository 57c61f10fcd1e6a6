"""Networks in parts: FSDP2 keeps a share of each on every rank, and gathers it block by block where it is asked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import torch
import torch.distributed as dist
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

from fdistill.core.distributed import in_touch, part_of, rank, same_on_all_ranks, world_size
from fdistill.core.meta_device import make_room
from fdistill.core.private_apis import forget_passes, set_device
from fdistill.io.shards import SHARDS, put_tensors, write_shards
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import EDM2UNet, TwoExperts
from fdistill.models.quantised import quantised_layers
from fdistill.training.averaging.ema import EMA
from fdistill.training.checkpoint_io import SafeCheckpointIO
from fdistill.training.parallel.replicated import ReplicatedStrategy

_TEACHERS = ("teacher", "guide", "reference")  # what a run reads and does not move


class ShardedStrategy(ReplicatedStrategy):
    """Each network is sharded on its own (FSDP2): what learns, with gradients and optimiser, its average, the teacher.

    A network lies on the device in parts; for each pass its blocks are gathered one after another and dropped behind
    it (`Network.units`). The average moves part by part. Whoever samples on one rank, or in unequal batches, gathers
    the network first (`fdistill.core.distributed.gathered`). Discriminators and reward networks are small and stay
    whole.
    Under bf16-mixed, what learns is gathered in bf16, and its gradients are reduced in float32. Checkpoints have the
    parts in a folder beside them, and continue under any strategy. In YAML: ``strategy: sharded``.
    """

    strategy_name = "sharded"

    def __init__(self, shard_teacher: bool = True, cpu_offload: bool = False, **lightning: Any) -> None:
        """Args:
        shard_teacher: whether teacher, guide and the reference of a tuning are sharded too, and gathered for each of
            their passes.
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
        networks = {name: _network_of(child) for name, child in module.named_children()}
        left_out = () if self.shard_teacher else _TEACHERS
        found = {name: net for name, net in networks.items() if net is not None and name not in left_out}
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
            set_device(self._module, self.root_device)
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
        self._sharded = self.shards(self._module)
        for name, network in self._sharded.items():
            gathered_as = in_bf16 if mixed and self.gathers_in_bf16(self._module, name) else MixedPrecisionPolicy()
            kept = on_cpu if self.cpu_offload else OffloadPolicy()
            _shard(network, mesh, self.root_device, gathered_as, kept)

    def _get_process_group_backend(self) -> str:
        """One that sums numbers of the CPU too, where parts lie there."""
        backend = super()._get_process_group_backend()
        return "cpu:gloo,cuda:nccl" if self.cpu_offload and backend == "nccl" else backend

    @property
    def _is_fitting(self) -> bool:
        return cast(L.LightningModule, self.lightning_module).trainer.state.fn == TrainerFn.FITTING

    def _small_children(self) -> list[nn.Module]:
        """What is whole on every rank."""
        sharded = self.shards(self._module)
        return [child for name, child in self._module.named_children() if name not in sharded]

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
            forget_passes(network)

    def average_gradients(self, networks: Mapping[str, nn.Module]) -> None:
        """Those of what is not sharded; the others are averaged in the backward pass."""
        super().average_gradients({name: part for name, part in networks.items() if not isinstance(part, Denoiser)})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Path | str, storage_options: Any | None = None
    ) -> None:
        """Each rank writes its parts into a folder beside the file (`fdistill.io.shards`), rank 0 all else."""
        super().save_checkpoint(write_shards(checkpoint, filepath), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Path | str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """With shapes alone of what lies in parts, which are read where they belong."""
        if isinstance(self.checkpoint_io, SafeCheckpointIO):
            return self.checkpoint_io.load_checkpoint(checkpoint_path, whole=False)
        return super().load_checkpoint(checkpoint_path, *args, **kwargs)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Into the weights where they are; while a run starts only rank 0's, of which all get their parts later."""
        saved = checkpoint["state_dict"]
        if SHARDS in checkpoint and (rank() == 0 or not self._is_fitting):
            own = cast(L.LightningModule, self.lightning_module).state_dict()
            parts = {f"state_dict/{name}": own[name] for name, value in saved.items() if value.is_meta}
            checkpoint[SHARDS].read_into(parts, alone=True)
        here = {name: value for name, value in saved.items() if not value.is_meta}
        super().load_model_state_dict({**checkpoint, "state_dict": here}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank's part, beside its part of the weights: from the parts of a sharded run, or from whole tensors."""
        if SHARDS in checkpoint:
            checkpoint = self._with_parts(checkpoint)
        states = [
            {**state, "state": _sharded_like(optimizer, state["state"])}
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        ]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})
        for parameter, held in ((p, h) for optimizer in self.optimizers for p, h in optimizer.state.items()):
            held |= {name: v.to(parameter.device) for name, v in held.items() if isinstance(v, DTensor)}

    def _with_parts(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """The optimisers' states, with this rank's parts where there were only shapes."""
        parts: dict[str, Tensor] = {}
        for number, (optimizer, state) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"], strict=True)):
            parameters = _parameters_of(optimizer)
            for index, held in state["state"].items():
                for name, value in held.items():
                    if isinstance(value, Tensor) and value.is_meta:
                        empty = torch.empty_like(parameters[index].detach(), dtype=value.dtype)
                        parts[f"optimizer_states/{number}/state/{index}/{name}"] = empty
        checkpoint[SHARDS].read_into(parts, alone=False)
        states = put_tensors({"optimizer_states": checkpoint["optimizer_states"]}, parts)
        return {**checkpoint, **states}


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
    if quantised_layers(network):
        raise ValueError(
            f"sharded weights are not in int8, as those of {name} are: expected teacher_dtype bfloat16 or float32, or "
            f"{remedy}"
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
        before = [(tensor, tensor.data) for tensor in unit.parameters() if not isinstance(tensor, DTensor)]
        for tensor in (*unit.parameters(), *unit.buffers()):
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)
                with in_touch():
                    dist.broadcast(tensor.data, src=0)
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=gathered_as, offload_policy=kept)
        for tensor, value in before:  # of which another network may still hold all, on the CPU
            tensor.data = value
    for half in ("encode", "finish"):
        register_fsdp_forward_method(denoiser, half)


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _sharded_like(optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """An optimiser's memory of each parameter, sharded as the parameter is."""
    parameters = _parameters_of(optimizer)
    return {index: {name: _part(v, parameters[index]) for name, v in held.items()} for index, held in state.items()}


def _part(value: Any, parameter: Tensor) -> Any:
    fits = isinstance(value, Tensor) and value.shape == parameter.shape
    return part_of(value, parameter) if fits else value


StrategyRegistry.register(
    ShardedStrategy.strategy_name,
    ShardedStrategy,
    description=str(ShardedStrategy.__doc__).splitlines()[0],
    override=True,
)
