"""Sums over the ranks of a job; with one process they cost nothing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


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
    """Replace each gradient by its mean over the ranks: one all-reduce of all of them laid end to end."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@in_touch()
def gather_rows(value: Tensor) -> Tensor:
    """All ranks' rows below each other, in the order of the ranks.

    Ranks may hold different numbers of rows; one that holds none need not know the shape and type of a row.
    """
    if world_size() == 1:
        return value
    facts = [(tuple(value.shape), value.dtype)] * world_size()
    dist.all_gather_object(facts, facts[0])
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
