"""Blocks of stock networks that keep nothing inside them for the backward pass, which computes them again."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from fdistill.models.denoiser import Denoiser
from fdistill.training.at_rest import weights_at_rest


def checkpoint_blocks(denoisers: Iterable[Denoiser | None]) -> None:
    """Turn on gradient checkpointing in networks of diffusers, in place; gradients keep their bits.

    Raises:
        ValueError: for any other network.
    """
    for denoiser in denoisers:
        if denoiser is not None:
            _turn_on(denoiser.network)


def _turn_on(network: nn.Module) -> None:
    stock: list[Any] = [part for part in network.children() if hasattr(part, "enable_gradient_checkpointing")]
    if not stock:
        got = type(network).__name__
        raise ValueError(
            f"gradient_checkpointing is for networks of diffusers: expected one, got {got}; leave it out, and set "
            "accumulate to keep fewer activations"
        )
    for part in stock:
        part.enable_gradient_checkpointing(_checkpointed)


def _checkpointed(block: nn.Module, *args: Any) -> Any:
    """What the block makes; weights at rest are so again while it is computed a second time."""
    resting = not any(weight.requires_grad for weight in block.parameters())
    second: AbstractContextManager[Any] = _AtRest(block) if resting else nullcontext()
    # no network here draws random numbers
    return checkpoint(
        block.__call__, *args, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), second)
    )


class _AtRest(AbstractContextManager[None]):
    """`weights_at_rest` that is entered for each backward pass through one graph, of which there may be several."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __enter__(self) -> None:
        self.inside = weights_at_rest(self.block)
        self.inside.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.inside.__exit__(*error)
