"""A turn without its arithmetic: a module's own training step on the meta device, where FLOPs and bytes are counted.

Nothing is modelled twice: what is counted is what `training_step` does, so the count follows every change of it.
"""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fdistill.data import Batch
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.objectives.reward_algorithms import RewardAlgorithm
from fdistill.training import DistillationModule, GenerativeModule, RewardTuningModule
from fdistill.training.generation import drawn_steps
from fdistill.training.rollout import Rollout

_FALLBACK_BATCH = 2  # samples of a count that has to compute
_STATE = 4  # bytes of an entry of a rollout's states
_LENGTH = 77  # of what a condition leaves open: the tokens of CLIP


class TurnCost(NamedTuple):
    """What one turn of one device costs.

    FLOPs are those of matrix products, convolutions and attention, two for each multiplication with its addition.
    """

    flops: int
    peak_bytes: int  # of all tensors that the turn makes, when most of them live; gradients are among them
    gradients: dict[str, int]  # bytes of the gradient that each network is left with, which ranks average
    updates: int = 1  # optimiser steps
    host_bytes: int = 0  # of states that a rollout keeps in the memory of the CPU


def dry_turn(module: GenerativeModule, batch_size: int, turn: int) -> TurnCost:
    """The cost of a turn, counted on a copy; no weight is read, and parameters may be on the meta device.

    A turn that has to see its numbers (no meta kernel, or a decision about values) is computed on the CPU for two
    samples, and scaled. A student of several steps is counted at its mean number of them. Of a rollout one step is
    counted, and of each of its updates two micro-batches; rewards and decoders are left out.

    Args:
        module: with or without its trainer.
        batch_size: samples on the device (conditions of a rollout), >= 1.
        turn: its number in the run, which sets what learns and where schedules are.

    Raises:
        ValueError: for a batch size that is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is the number of samples on a device and positive: got {batch_size}")
    try:
        cost = _counted(_dry(module, turn).to("meta"), batch_size)
    except (NotImplementedError, RuntimeError):
        computed = _dry(module, turn)._apply(lambda t: torch.zeros_like(t, device="cpu") if t.is_meta else t)
        few = batch_size if isinstance(module, RewardTuningModule) else _FALLBACK_BATCH  # of that a part is made
        cost = _counted(computed.cpu(), few)
        first, second = (int(value * batch_size / few) for value in cost[:2])
        cost = cost._replace(flops=first, peak_bytes=second)
    return cost._replace(flops=cost.flops + _steps_missing(module, batch_size, turn))


def forward_flops(denoiser: Denoiser, batch_size: int) -> tuple[int, int]:
    """(F, E): FLOPs of a forward pass, and of its encoder half alone."""
    meta = copy.deepcopy(denoiser).to("meta").hold_in(torch.float32)  # the meta device knows no autocast
    x, sigma, condition = _batch_of(denoiser, batch_size, "meta")
    return _flops(lambda: meta(x, sigma, condition)), _flops(lambda: meta.encode(x, sigma, condition, behind="nothing"))


class Meter(TorchDispatchMode):
    """FLOPs of the operations inside the block, and bytes of the storages that they make: alive now, and at the most.

    It counts by the formulas of torch's FlopCounterMode, whose tracking of modules refuses some graphs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0
        self._alive: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        given = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage(), given)
        return out

    def _see(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        """A storage that was given is another's: a view of a weight makes none."""
        key = storage._cdata
        if key not in self._alive and key not in given:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            self._alive[key] = weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.now -= size
        del self._alive[key]


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention by a kernel that keeps no matrix of scores, as GPUs have; the meta device would take plain products.

    It acts in the backward pass too, where checkpointed blocks are computed again and no mode of torch's is on.
    """
    kept = F.scaled_dot_product_attention
    setattr(F, kept.__name__, _attention)
    try:
        yield
    finally:
        setattr(F, kept.__name__, kept)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    kernel: Any = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


class _Dry:
    """The parts of a module that need a trainer or numbers, replaced: nothing is stepped, checked or logged."""

    dry_turn: int

    @property
    def global_step(self) -> int:
        return self.dry_turn

    @property
    def global_rank(self) -> int:
        return 0

    def noise_source(self, *counters: int) -> torch.Generator:
        return torch.Generator()  # on the CPU: the meta device has none, and takes this one

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()

    def optimizers(self, *args: Any) -> tuple[None, None]:
        return None, None

    def guarded_step(self, losses: Any, networks: dict[str, Any], *args: Any) -> dict[str, Tensor]:
        return dict.fromkeys(networks, torch.zeros(()))

    def is_logging_turn(self, turn: int) -> bool:
        return False


class _DryTuning(_Dry):
    """A turn of reward tuning of which a part is made; nothing is judged, and no state leaves the device."""

    levels: list[float]
    algorithm: RewardAlgorithm

    def _roll_out(self, batch_size: int, condition: Condition, turn: int) -> Rollout:
        """One step, and states that take no memory."""
        with Meter() as meter:
            samples = cast(Any, self)._rolled(batch_size, condition, self.levels[:2], [0.0]).samples
        self.step_flops = meter.flops
        kept = sum(eta > 0 for eta in self.algorithm.etas(turn, cast(Any, self).steps))
        states = samples.new_zeros(1, 1, *samples.shape[1:]).expand(kept + 1, *samples.shape)
        self.host_bytes = states.numel() * _STATE if kept else 0
        each = torch.zeros(kept)
        return Rollout(samples, states, each, each, each, torch.zeros(kept, len(samples)))

    def _judge(self, rollout: Rollout, condition: Condition, batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(len(rollout.samples)), {}

    def _pairs_of(self, rollout: Rollout) -> int:
        """Two micro-batches of each update: in the second one gradients of the first are there."""
        self.pairs = RewardTuningModule._pairs_of(cast(Any, self), rollout)
        self.made = min(self.pairs, 2 * cast(Any, self).at_once * self.algorithm.updates)
        return self.made

    def whole(self, cost: TurnCost) -> TurnCost:
        """The cost of the whole turn from that of what was made of it."""
        updates = (cost.flops - self.step_flops) * self.pairs // self.made
        flops = updates + self.step_flops * (len(self.levels) - 1)
        return cost._replace(flops=flops, updates=self.algorithm.updates, host_bytes=self.host_bytes)


def _dry(module: GenerativeModule, turn: int) -> GenerativeModule:
    trainer, module._trainer = module._trainer, None  # a trainer holds data and files that need no copy
    try:
        copied: Any = copy.deepcopy(module)
    finally:
        module._trainer = trainer
    copied.zero_grad(set_to_none=True)
    for frozen in (part for part in copied.modules() if isinstance(part, Denoiser) and part.halved):
        frozen.hold_in(torch.float32)  # the meta device knows no autocast; the count is the same
    parts = _DryTuning if isinstance(module, RewardTuningModule) else _Dry
    copied.__class__ = type(f"Dry{type(module).__name__}", (parts, type(module)), {})
    copied.dry_turn = turn
    return copied.train()


def _counted(module: GenerativeModule, batch_size: int) -> TurnCost:
    networks = dict(module.named_children())
    x, _, condition = _batch_of(next(iter(module.denoisers().values())), batch_size, module.device)
    if isinstance(module, DistillationModule) and module.reuse_generated:  # all cycles but the first have samples
        module.last_generated = (x, condition.only(module.student.takes))
    with Meter() as meter, _fused_attention() if module.device.type == "meta" else nullcontext():
        module.training_step(Batch(x, torch.zeros(batch_size, dtype=torch.int64), condition), 0)
    gradients = {
        name: sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)
        for name, network in networks.items()
    }
    cost = TurnCost(meter.flops, meter.peak, {name: n for name, n in gradients.items() if n})
    return module.whole(cost) if isinstance(module, _DryTuning) else cost


def _steps_missing(module: GenerativeModule, batch_size: int, turn: int) -> int:
    """FLOPs from the steps that the student drew in this turn to the mean of all turns; one forward pass a step."""
    if not isinstance(module, DistillationModule) or len(module.levels) == 1:
        return 0
    most = len(module.levels)
    forward, _ = forward_flops(module.student, batch_size)
    least = module.least_steps()
    return int(((most + least) / 2 - drawn_steps(module.seed, turn, most, least)) * forward)


def _batch_of(denoiser: Denoiser, n: int, device: torch.device | str) -> tuple[Tensor, Tensor, Condition]:
    named = {}
    for name, (shape, dtype, _) in denoiser.takes.items():
        named[name] = torch.zeros(n, *(size or _LENGTH for size in shape), dtype=dtype, device=device)
    return torch.zeros(n, *denoiser.sample_shape, device=device), torch.ones(n, device=device), Condition(named)


def _flops(run: Callable[[], Any]) -> int:
    with Meter() as meter, torch.no_grad(), _fused_attention():
        run()
    return meter.flops
