"""What a raw network F is: it sees a scaled sample, a number that stands for the noise level, and a condition."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fdistill.core.spec import Described
from fdistill.models.condition import Condition, Conditioned, Takes, takes_classes
from fdistill.models.networks.checkpointing import checkpointed

LEAST_SHARE = 0.002
"""Of a network's weights, that a block has to have to be gathered by itself."""


class Encoding(NamedTuple):
    """The encoder half of a forward pass: feature taps for a discriminator, and what the decoder needs to finish."""

    features: tuple[Tensor, ...]  # one tap per level, each [B, C, ...]
    state: Any


class Network(nn.Module, Described, ABC):
    """F(x, noise, condition). The two halves are separate so that features cost the encoder only.

    Attributes:
        sample_shape: shape of one sample, e.g. (1, 8, 8) or (2,).
        num_classes: of a network that takes classes alone, and 0 for every other. With one set of them its condition
            is "labels", int64 [B] in [0, num_classes], and the label `num_classes` means "no class" (guidance trains
            it by dropout); with several it counts their combinations.
        feature_channels: channels of each feature tap.
        knows_no_class: False where "no class" was never trained, so that guidance by it means nothing.
        recomputes: whether the backward pass computes activations again (`checkpoint_gradients`).
    """

    sample_shape: tuple[int, ...]
    num_classes: int
    feature_channels: tuple[int, ...]
    knows_no_class: bool = True
    recomputes: bool = False

    @property
    def takes(self) -> Takes:
        """The condition that it takes; empty where it is unconditional."""
        return takes_classes(self.num_classes)

    def null(self, n: int, device: torch.device | str = "cpu") -> Condition:
        """The condition of n samples that means "no condition": "no class" under each name.

        Raises:
            ValueError: where the network was never trained without its condition.
        """
        if not self.knows_no_class:
            raise ValueError(
                f'{type(self).__name__} was trained with a class for every sample and knows no "no class": '
                "set guidance to 1"
            )
        return Condition({name: torch.full((n,), entry.classes, device=device) for name, entry in self.takes.items()})

    @abstractmethod
    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        """First half; x is [B, *sample_shape], noise [B], the condition what the network takes, of B samples."""

    @abstractmethod
    def decode(self, encoding: Encoding) -> Tensor:
        """Second half; [B, *sample_shape]."""

    def features(self, x: Tensor, noise: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """The feature taps alone."""
        return self.encode(x, noise, condition).features

    def encode_without_graph_behind(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        """As `encode`, where nothing but the features is differentiated: what computes more needs no graph for it."""
        return self.encode(x, noise, condition)

    def read_features_at(self, blocks: Sequence[int]) -> None:
        """Take the features behind these blocks, of networks that leave a choice.

        Raises:
            ValueError: where it leaves none, or for numbers of no blocks.
        """
        raise ValueError(f"features of {type(self).__name__} are its encoder's: leave feature_blocks out")

    def checkpoint_gradients(self, again: Callable[[nn.Module], AbstractContextManager[None]]) -> None:
        """Keep no activations inside of the blocks of a network of diffusers: the backward pass computes them again.

        Gradients keep their bits.

        Args:
            again: called with a block in the forward pass; what is entered when the block is computed again.

        Raises:
            ValueError: for any other network.
        """
        stock: list[Any] = [part for part in self.children() if hasattr(part, "enable_gradient_checkpointing")]
        if not stock:
            raise ValueError(
                f"gradient_checkpointing is for networks of diffusers: expected one, got {type(self).__name__}; leave "
                "it out, and set accumulate to keep fewer activations"
            )
        for part in stock:
            part.enable_gradient_checkpointing(partial(checkpointed, again))
        self.recomputes = True

    def units(self) -> list[nn.Module]:
        """Blocks that are only ever asked as modules, inner ones first; what is sharded is gathered one at a time.

        They are the members of the outermost lists, where they are not too small to be worth a message.
        """
        least = LEAST_SHARE * sum(parameter.numel() for parameter in self.parameters())
        return [unit for unit in _listed(self) if sum(parameter.numel() for parameter in unit.parameters()) > least]

    def forward(self, x: Tensor, noise: Tensor, condition: Conditioned = None) -> Tensor:
        """F, [B, *sample_shape]."""
        known = Condition.of(condition, self.takes)
        known.check(self.takes, x.shape[0])
        return self.decode(self.encode(x, noise, known))


def train_without_dropout(network: nn.Module) -> None:
    """Evaluation mode for all of a network that learns, but for modules whose class says `exact_in_training`.

    So whatever acts by chance while training is off, in networks of any library; what else a network does in training
    mode (EDM2 normalises its weights) goes on.
    """
    for module in network.modules():
        module.training = getattr(module, "exact_in_training", False)


def _listed(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from child.children()
        else:
            yield from _listed(child)
