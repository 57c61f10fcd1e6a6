"""A stock text-to-image network of diffusers, rebuilt from its plain configuration, as a raw network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fdistill.core.build import build_stock
from fdistill.models.condition import Condition, Takes
from fdistill.models.networks.base import Encoding, Network
from fdistill.models.networks.checkpointing import ReachedError
from fdistill.models.networks.text.families import FAMILIES

_LARGEST_SIDE = 4096  # of latents; no weight depends on it


class TextToImageNetwork(Network):
    """One of the families of `FAMILIES`, at the time input `noise` as its path has it.

    Stock networks cannot be divided: `encode` makes the whole forward pass and `decode` returns its result. `features`
    stops where the features are, which costs less; `forward_with_features` gives both.

    The null condition is what the pipeline gives its network for the negative prompt where a user gives none. It lies
    in buffers, which are NaN until weights are loaded, so that their use shows.
    """

    num_classes = 0

    def __init__(
        self,
        family: str,
        config: dict[str, Any],
        sample_shape: Sequence[int],
        vae_factor: int = 8,
        guidance: float | None = None,
        null: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Args:
        family: a name of `FAMILIES`.
        config: arguments of the stock network.
        sample_shape: channels, height and width of the latents.
        vae_factor: side of an image for each unit of the latents' side.
        guidance: scale that the network is told, where one is embedded.
        null: shape of the null condition's tensors, without the batch; None where guidance is distilled into the
            network.

        Raises:
            ValueError: for an unknown family, or a configuration that is not of it.
        """
        import diffusers  # its text-to-image networks take seconds to import

        super().__init__()
        if family not in FAMILIES:
            raise ValueError(f"a family of text-to-image networks is one of {', '.join(FAMILIES)}: got {family!r}")
        if len(sample_shape) != 3 or not all(type(n) is int and 0 < n <= _LARGEST_SIDE for n in sample_shape):
            raise ValueError(
                f"sample_shape is channels, height and width, each up to {_LARGEST_SIDE:,}: got {list(sample_shape)}"
            )
        kind = FAMILIES[family]
        self.stock = build_stock(getattr(diffusers, kind.stock), config)
        self.family = kind(self.stock.config, sample_shape, vae_factor, guidance)
        self.sample_shape = tuple(sample_shape)
        self.read_features_at([self.family.middle(self.stock)])
        self._null = {} if null is None else {name: f"null_{index}" for index, name in enumerate(self.takes)}
        if null is not None and null.keys() != self.takes.keys():
            raise ValueError(f"a null condition has the tensors {list(self.takes)}: got {list(null)}")
        for name, buffer in self._null.items():
            entry, shape = self.takes[name], tuple((null or {})[name])
            self.register_buffer(buffer, _unknown(shape, entry.dtype))

    @property
    def takes(self) -> Takes:
        return self.family.takes

    @property
    def image_factor(self) -> int:
        """Side of an image for each unit of the latents' side."""
        return self.family.latents(self.family.config, self.family.vae_factor)[1]

    @property
    def knows_no_class(self) -> bool:  # type: ignore[override]  # it depends on the null condition
        """Whether it has a null condition."""
        return bool(self._null)

    def null(self, n: int, device: torch.device | str = "cpu") -> Condition:
        if not self._null:
            raise ValueError(
                f"guidance is distilled into this {self.family.stock}, which has no null condition: set guidance to 1"
            )
        return Condition(
            {
                name: getattr(self, buffer).to(device).expand(n, *getattr(self, buffer).shape)
                for name, buffer in self._null.items()
            }
        )

    def set_null(self, condition: Condition) -> None:
        """Make one prompt's condition, of one sample, the null one: a negative prompt.

        Raises:
            ValueError: where it is none of this network's, or of several samples.
        """
        condition.check(self.takes, 1)
        self._null = {name: f"null_{index}" for index, name in enumerate(self.takes)}
        for name, buffer in self._null.items():
            self.register_buffer(buffer, condition[name][0].to(next(self.parameters()).device))
        shapes = {name: list(condition[name].shape[1:]) for name in self.takes}
        self.__dict__["_init_args"]["null"] = shapes  # what its description rebuilds

    def null_tensors(self) -> dict[str, Tensor]:
        """The null condition's tensors without the batch, by the condition's names; none where there is none."""
        return {name: getattr(self, buffer).detach().cpu().contiguous() for name, buffer in self._null.items()}

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        return Encoding(*self.forward_with_features(x, noise, condition))

    def encode_without_graph_behind(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        return Encoding(*self.forward_with_features(x, noise, condition, lambda: torch.set_grad_enabled(False)))

    def decode(self, encoding: Encoding) -> Tensor:
        return encoding.state

    def read_features_at(self, blocks: Sequence[int]) -> None:
        """Take the features behind these blocks, rising, in the order of evaluation; behind the middle at first."""
        count = len(self.family.blocks(self.stock))
        if not blocks or sorted({*blocks}) != list(blocks) or not 0 <= blocks[0] <= blocks[-1] < count:
            raise ValueError(
                f"feature_blocks are numbers of blocks of this {self.family.stock}, rising, from 0 to {count - 1}: "
                f"got {list(blocks)}"
            )
        self._read, self.feature_channels = tuple(blocks), tuple(self.family.feature_channels(n) for n in blocks)

    def features(self, x: Tensor, noise: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """The feature taps alone, each [B, C, h', w']; the forward pass ends behind the last one."""
        with suppress(ReachedError), self._tapped(_stop) as found:
            self.family(self.stock, x, noise, condition)
        return tuple(self.family.tap(found[index], condition) for index in self._read)

    def forward_with_features(
        self, x: Tensor, noise: Tensor, condition: Condition, then: Callable[[], object] = lambda: None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The feature taps, and F [B, *sample_shape]; `then` is called at the last of them."""
        with torch.set_grad_enabled(torch.is_grad_enabled()), self._tapped(then) as found:  # whatever `then` changes
            output = self.family(self.stock, x, noise, condition)
        return tuple(self.family.tap(found[index], condition) for index in self._read), output

    @contextmanager
    def _tapped(self, then: Callable[[], object]) -> Iterator[dict[int, Any]]:
        """Collects what the blocks return whose features are read; `then` is called at the last one."""
        found: dict[int, Any] = {}

        def keep(index: int, block: Any, given: Any, output: Any) -> None:
            found[index] = output
            if index == self._read[-1]:
                then()

        blocks = self.family.blocks(self.stock)
        handles = [blocks[index].register_forward_hook(partial(keep, index)) for index in self._read]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def from_stock_names(self, weights: dict[str, Tensor], null: Condition | None = None) -> dict[str, Tensor]:
        """A stock network's tensors, and a null condition of one sample, as this network's state."""
        state = {f"stock.{name}": value for name, value in weights.items()}
        return state | {buffer: null[name][0] for name, buffer in self._null.items() if null is not None}


def _stop() -> None:
    raise ReachedError


def _unknown(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan") if dtype.is_floating_point else 0, dtype=dtype)
