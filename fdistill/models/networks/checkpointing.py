"""Gradient checkpointing: blocks that keep no activations inside, which the backward pass computes again."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


class ReachedError(Exception):
    """Ends a forward pass behind the last feature that is read."""


def checkpointed(again: Callable[[nn.Module], AbstractContextManager[None]], block: nn.Module, *given: Any) -> Any:
    """What a block returns, to be computed again in the backward pass, in the context that `again` makes now.

    A pass that ends in the block leaves the checkpoint as if it went on: what is computed again does not end. No
    network here draws random numbers, so that no state of a generator is kept.
    """
    ended = False

    def run(*given: Any) -> Any:
        nonlocal ended
        try:
            return block(*given)
        except ReachedError:
            ended = True

    contexts: dict[str, Any] = {"context_fn": lambda: (nullcontext(), again(block))}
    output = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False, **contexts)
    if ended:
        raise ReachedError
    return output
