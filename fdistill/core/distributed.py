"""What the ranks of a job do together: sums, gathers, waiting for one; with one process they cost nothing."""

import builtins
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fdistill.core.private_apis import limit_waiting

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)
"""How long ranks wait for each other at the start, and wherever one of them works alone."""

_limit = PATIENCE  # of the collectives of this process now: torch has no way to ask
_alone = False  # whether this is rank 0 inside `on_rank_0`


class LostRankError(RuntimeError):
    """Another process of the job is gone, or does not answer in time."""


@contextmanager
def in_touch() -> Iterator[None]:
    """Around collectives: their failure says in one line what it means.

    Raises:
        LostRankError: in place of what the backend says of its sockets.
    """
    try:
        yield
    except dist.DistError as error:
        raise _lost(error) from error
    except RuntimeError as error:
        if world_size() == 1 or "gloo" not in str(error).lower():
            raise
        raise _lost(error) from error


def _lost(error: Exception) -> LostRankError:
    return LostRankError(
        f"rank {dist.get_rank()} of {world_size()} lost another rank: its process died, or did not answer in time; see "
        "what it printed last, and continue with --ckpt_path last (a rank that only needs longer: raise timeout_s of "
        "the strategy)"
    )


def world_size() -> int:
    """Number of processes of the job."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def warn_on_rank_0(message: str) -> None:
    """Warn once for all ranks, in the name of the caller's caller."""
    if rank() == 0:
        warnings.warn(message, stacklevel=3)


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def wait_at_most(limit: timedelta) -> None:
    """How long this process waits for another rank in a collective, from now on."""
    global _limit
    _limit = limit
    if world_size() > 1:
        limit_waiting(limit)


@contextmanager
def patient() -> Iterator[None]:
    """Inside, ranks wait `PATIENCE` for each other: where one has more to do than another. All enter and leave it."""
    before = _limit
    wait_at_most(max(before, PATIENCE))
    try:
        yield
    finally:
        wait_at_most(before)


def on_rank_0(compute: Callable[[], T]) -> T:
    """What rank 0 computes alone, on every rank; the others wait patiently, so every rank has to ask.

    Inside `compute` the rule is off: rank 0 computes what asks again itself.

    Raises:
        Exception: whatever `compute` raises there, and on the other ranks the nearest built-in kind of it, whose
            message names rank 0 and the kind; a ValueError's message is the same on all.
    """
    global _alone
    if world_size() == 1 or _alone:
        return compute()
    result, raised = None, None
    if rank() == 0:
        _alone = True
        try:
            result = compute()
        except BaseException as error:
            raised = error
        finally:
            _alone = False
    with patient(), in_touch():
        sent: list[tuple[Any, tuple[str, str] | None]] = [(result, None if raised is None else _named(raised))]
        dist.broadcast_object_list(sent, src=0)
    if raised is not None:
        raised.add_note("this is rank 0, which worked alone; the others were told")
        raise raised
    received, failure = sent[0]
    if failure is not None:
        kind, message = failure
        raise getattr(builtins, kind)(message)
    return received


def together(compute: Callable[[], T]) -> T:
    """What each rank computes by itself; a ValueError of any is raised on all, so that none waits for another.

    Every rank has to ask equally often.

    Raises:
        ValueError: with the message of the first rank that raised one.
    """
    result, raised = None, None
    try:
        result = compute()
    except ValueError as error:
        raised = error
    said = [fault for fault in gather_objects(None if raised is None else str(raised)) if fault is not None]
    if said:
        raise ValueError(said[0]) from raised
    return cast(T, result)


def _named(error: BaseException) -> tuple[str, str]:
    """Name of the nearest built-in kind of an exception that a message makes, and its message for other ranks."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind in (ValueError, KeyError, OSError, TypeError)]
    message = str(error) if isinstance(error, ValueError) else f"rank 0 failed with {type(error).__name__}: {error}"
    return (kinds or ["RuntimeError"])[0], message


@in_touch()
def global_sum(value: Tensor) -> Tensor:
    """Sum of `value` over the ranks, on every rank, without gradient."""
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def global_mean(values: Tensor) -> Tensor:
    """Mean of all entries on all ranks, which hold equally many; a scalar without gradient."""
    return global_sum(values.mean()) / world_size()


@in_touch()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks: one all-reduce of all of them laid end to end.

    Where a rank has none (of an expert that its batch did not reach, say) its share is 0.
    """
    if world_size() == 1:
        return
    gradients = gradients_of(parameters)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    write_gradients(gradients, flat.div_(world_size()))


def gradients_of(parameters: Iterable[torch.nn.Parameter]) -> list[Tensor]:
    """The gradients of the parameters that learn; one of zeros where a parameter has none."""
    gradients = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    return gradients


def whole(value: Tensor) -> Tensor:
    """All of a tensor that is sharded over the ranks, each of which has to ask for it; any other as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # importing DTensor to ask takes a second


def local(value: Tensor) -> Tensor:
    """This rank's part of a tensor that is sharded, in its own memory; any other as it is."""
    return value.to_local() if hasattr(value, "to_local") else value


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which all ranks have, sharded as `like` is."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded = cast("DTensor", like)
    return distribute_tensor(value.to(like.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


def is_sharded(network: torch.nn.Module) -> bool:
    """Whether this rank has only a part of the network's weights now."""
    return any(hasattr(parameter, "full_tensor") for parameter in network.parameters())


@contextmanager
def gathered(*networks: torch.nn.Module) -> Iterator[None]:
    """Inside, every rank has all weights of these networks, and may ask them as often as it likes, or never.

    All ranks enter and leave together. It does nothing for networks that are whole already.
    """
    parts = [
        cast("FSDPModule", part)
        for net in networks
        if is_sharded(net)
        for part in net.modules()
        if hasattr(part, "unshard")
    ]
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            with in_touch():
                part.unshard()
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def write_gradients(gradients: Sequence[Tensor], flat: Tensor) -> None:
    """Fill each gradient with its part of one vector [n], in their order."""
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@in_touch()
def all_ranks(value: Tensor) -> Tensor:
    """The values of all ranks, of one shape, [ranks, *shape], on every rank."""
    parts = [value] if world_size() == 1 else [torch.empty_like(value) for _ in range(world_size())]
    if world_size() > 1:
        dist.all_gather(parts, value.contiguous())
    return torch.stack(parts)


@in_touch()
def gather_objects(mine: Any) -> list[Any]:
    """What each rank gave, in the order of the ranks, on every rank; plain values and CPU tensors."""
    found = [mine] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, mine)
    return found


@in_touch()
def gather_rows(value: Tensor) -> Tensor:
    """All ranks' rows below each other, in the order of the ranks.

    Ranks may hold different numbers of rows; one that holds none need not know the shape and type of a row.
    """
    if world_size() == 1:
        return value
    facts = gather_objects((tuple(value.shape), value.dtype))
    shapes = [shape for shape, _ in facts]
    filled = [fact for fact in facts if fact[0][0]]
    if not filled:
        return value
    (_, *row), dtype = filled[0]
    if any(tuple(shape[1:]) != tuple(row) or kind != dtype for shape, kind in filled):
        raise ValueError(f"rows of all ranks have one shape and type: got {facts}; use one extractor on every rank")
    most = max(shape[0] for shape in shapes)
    padded = value.new_zeros(most, *row, dtype=dtype)  # collectives ask for equal sizes
    padded[: len(value)] = value if len(value) else padded[:0]
    parts = [torch.empty_like(padded) for _ in facts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: shape[0]] for part, shape in zip(parts, shapes, strict=True)])


@in_touch()
def same_on_all_ranks(module: torch.nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, in place."""
    if world_size() == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor.data, src=0)
