"""From the cost of its turns to the memory and the least time of a run on a kind and number of GPUs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from fdistill.training import DistillationModule, GenerativeModule, RewardTuningModule, TeacherModule
from fdistill.training.planning.dry_turn import TurnCost, dry_turn, forward_flops
from fdistill.training.planning.hardware import Arithmetic, Gpu, ring_seconds
from fdistill.training.planning.parts import Parts
from fdistill.training.planning.turn_kinds import turns_of_run

_DAY = 86_400.0
_PROBE = 64  # entries of the parameter on which an optimiser is tried
_ROLES = {"denoiser": "teacher", "ratio": "discriminator", "frozen": "reward"}  # of a module's children
_TUNED = {"denoiser": "policy", "old": "old policy"}
_GENERATORS = ("student", "policy", "teacher")  # the first of them that a run has
_AMP_SHARE = 0.5  # of the bytes of a turn's tensors where autocast makes them bf16


@dataclass(frozen=True)
class TurnPlan:
    """One kind of turn; times in seconds.

    Attributes:
        count: turns of this kind in the run.
        flops: on one device.
        forwards: the same in forward passes F of the student (or teacher in training; in reward tuning of all samples).
        all_reduce_bytes: gradients that each device averages with the others, float32; of all updates of a rollout.
        compute: FLOPs at the given share of the peak rate.
        stepping: bytes that the optimiser and the moving average read and write, at the memory's bandwidth.
        communication: ring all-reduce of the gradients; where weights are sharded, a reduce-scatter, and what moves is
            gathered for its forward and its backward pass.
    """

    count: int
    flops: int
    forwards: float
    all_reduce_bytes: int
    compute: float
    stepping: float
    communication: float

    @property
    def bound(self) -> float:
        """No turn is faster: communication may hide behind arithmetic."""
        return max(self.compute + self.stepping, self.communication)

    @property
    def in_sequence(self) -> float:
        """The same where gradients are averaged after the backward pass, as `ReplicatedStrategy` does."""
        return self.compute + self.stepping + self.communication


@dataclass(frozen=True)
class Plan:
    """What a run needs.

    Attributes:
        parameters: number of each network.
        memory: bytes of one device by what they hold.
        on_cpu: the same of what its process keeps in the memory of the CPU instead.
        turns: by kind.
        batch_size: of one device.
        devices: how many.
        encoder_share: E / F.
    """

    parameters: dict[str, int]
    memory: dict[str, int]
    on_cpu: dict[str, int]
    turns: dict[str, TurnPlan]
    batch_size: int
    devices: int
    encoder_share: float

    @property
    def memory_bytes(self) -> int:
        """Of one device, without the context of CUDA, workspaces of its libraries and fragmentation."""
        return sum(self.memory.values())

    @property
    def days(self) -> float:
        """Least time of the run."""
        return sum(turn.count * turn.bound for turn in self.turns.values()) / _DAY

    @property
    def days_in_sequence(self) -> float:
        """Least time where nothing hides communication."""
        return sum(turn.count * turn.in_sequence for turn in self.turns.values()) / _DAY

    @property
    def updates(self) -> int:
        """Of the generator in the whole run; 1 for a run that ends in its warm-up."""
        kinds = ("teacher", "tuning", "fused", "student")
        return next((self.turns[name].count for name in kinds if name in self.turns), 1)


def plan_run(
    module: GenerativeModule,
    batch_size: int,
    turns: int,
    gpu: Gpu,
    devices: int = 1,
    link: float | None = None,
    arithmetic: Arithmetic = "tf32",
    mfu: float = 0.4,
    mixed: bool = False,
    strategy: object = None,
) -> Plan:
    """Count the run's turns and divide by the rates of the hardware.

    Args:
        module: teacher training, reward tuning or distillation; its parameters may be on the meta device.
        batch_size: of one device; of reward tuning conditions, each of a group of samples.
        turns: of the run.
        gpu: the device.
        devices: how many, >= 1.
        link: bytes/s each way between the slowest two neighbours of the ring; None for those of one machine.
        arithmetic: of matrix products.
        mfu: share of the peak rate that is reached, in (0, 1].
        mixed: whether autocast makes bf16 of most of what a turn keeps.
        strategy: of the trainer; a `ShardedStrategy` divides networks among the devices, all others hold them whole.

    Raises:
        ValueError: a number is out of its range, or the strategy refuses a network.
    """
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is the share of the peak rate that a network reaches, in (0, 1]: got {mfu}")
    if devices < 1:
        raise ValueError(f"a run needs at least one device: got {devices}")
    roles = _roles(module)
    parts = Parts.of(module, strategy, devices, mixed)
    generator = next(child for name in _GENERATORS for child, role in roles.items() if role == name)
    samples = batch_size * (module.algorithm.group if isinstance(module, RewardTuningModule) else 1)
    forward, encoder = forward_flops(getattr(module, generator), samples)
    states = _optimizer_states(module)
    made, costs = {}, {}
    for name, kind in turns_of_run(module, turns).items():
        cost = costs[name] = dry_turn(module, batch_size, kind.example)
        made[name] = TurnPlan(
            kind.count,
            cost.flops,
            cost.flops / forward,
            cost.updates * sum(cost.gradients.values()) if devices > 1 else 0,
            cost.flops / (mfu * gpu.peak(arithmetic)),
            _stepping_bytes(cost, roles, states, parts) / gpu.bandwidth,
            ring_seconds(cost.updates * parts.sent(cost.gradients), devices, gpu.link if link is None else link),
        )
    parameters = {roles[name]: n for name, n in _own(module, lambda p: p.numel(), parts).items()}
    memory, on_cpu = _lasting(module, roles, states, parts)
    memory["turn (activations, gradients)"] = max(_turn_bytes(cost, parts, mixed) for cost in costs.values())
    if parts.sharded:
        memory["blocks gathered"] = parts.gathered
    if parts.on_cpu:
        on_cpu["gradients"] = max(_gradients(cost, parts)[1] for cost in costs.values())
    if kept := max(cost.host_bytes for cost in costs.values()):
        on_cpu["states of a rollout"] = kept
    return Plan(parameters, memory, on_cpu, made, batch_size, devices, encoder / forward)


def _roles(module: GenerativeModule) -> dict[str, str]:
    """What the module's children are in the run, by name; those without parameters are left out."""
    names = _ROLES | (_TUNED if isinstance(module, RewardTuningModule) else {})
    return {name: names.get(name, name) for name, child in module.named_children() if _count(child)}


def _lasting(
    module: GenerativeModule, roles: dict[str, str], states: dict[str, float], parts: Parts
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that stay from turn to turn, by what they hold: of a device, and beside it on the CPU."""
    places: tuple[dict[str, int], dict[str, int]] = ({}, {})
    children = dict(module.named_children())
    for name, size in _own(module, lambda tensor: tensor.nbytes, parts, buffers=True).items():
        role, place = roles[name], places[parts.is_on_cpu(name)]
        place[f"weights of {role}"] = parts.share(name, size)
        state = parts.share(name, int(_learning(children[name]) * states.get(role, 0.0)))
        place["optimiser states"] = place.get("optimiser states", 0) + state
    return places


def _own(module: nn.Module, size: Callable[[torch.Tensor], int], parts: Parts, buffers: bool = False) -> dict[str, int]:
    """Sizes of the module's children that have parameters, by name; a base that several share is the frozen one's.

    A network that is sharded has its own part of all.
    """
    seen: set[int] = set()
    found = {}
    children = [(name, child) for name, child in module.named_children() if _count(child)]
    for name, child in sorted(children, key=lambda named: _learning(named[1]) > 0):
        tensors = [*child.parameters(), *(child.buffers() if buffers else ())]
        found[name] = sum(size(tensor) for tensor in tensors if name in parts.sharded or id(tensor) not in seen)
        seen |= set(map(id, tensors))
    return found


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _learning(network: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)


def _optimizer_states(module: GenerativeModule) -> dict[str, float]:
    """Bytes of an optimiser's state for each byte of the weights it moves, by role; tried on a tiny parameter."""
    if isinstance(module, RewardTuningModule):
        return {"policy": _states_of(module.optimizer)}
    if not isinstance(module, DistillationModule):
        teacher = cast(TeacherModule, module)
        return dict.fromkeys(teacher.learning(), _states_of(teacher.optimizer))
    shares = {"student": _states_of(module.student_optimizer)}
    fake = _states_of(module.fake_score_optimizer)
    present = {"fake_score": module.fake_score, "discriminator": module.ratio}
    return shares | {role: fake for role, network in present.items() if network is not None}


def _states_of(factory: Callable[..., Any]) -> float:
    parameter = nn.Parameter(torch.zeros(_PROBE))
    optimizer = factory([parameter])
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))
    return sum(value.nbytes for value in kept if value.numel() > 1) / parameter.nbytes


def _stepping_bytes(cost: TurnCost, roles: dict[str, str], states: dict[str, float], parts: Parts) -> float:
    """Gradients are read to be clipped, written, and read to step; weights and states are read and written.

    The generator's average is read and written, and the weights read once more for it. What steps on the
    CPU is left out.
    """
    total = 0.0
    for name, size in cost.gradients.items():
        role, part = roles[name], 0 if parts.is_on_cpu(name) else parts.share(name, size)
        total += part * (cost.updates * (3 + 2 + 2 * states.get(role, 0.0)) + 3 * (role in _GENERATORS))
    return total


def _gradients(cost: TurnCost, parts: Parts) -> tuple[int, int]:
    """Bytes of the gradients that a turn leaves, on a device and on the CPU."""
    places = [0, 0]
    for name, size in cost.gradients.items():
        places[parts.is_on_cpu(name)] += parts.share(name, size)
    return places[0], places[1]


def _turn_bytes(cost: TurnCost, parts: Parts, mixed: bool) -> int:
    """The fullest moment of a turn: in its backward pass, or when gradients lie end to end for the all-reduce."""
    activations = max(cost.peak_bytes - sum(cost.gradients.values()), 0) * (_AMP_SHARE if mixed else 1)
    whole = [size for name, size in cost.gradients.items() if name not in parts.sharded]
    averaging = max(whole, default=0) if parts.devices > 1 else 0
    return int(_gradients(cost, parts)[0] + max(activations, averaging))
