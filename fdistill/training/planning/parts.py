"""Where the bytes of a run lie: whole on each device, in parts on all of them, or beside them on the CPU."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from fdistill.models.denoiser import Denoiser
from fdistill.training import GenerativeModule
from fdistill.training.parallel import ShardedStrategy

_GRADIENT = 4  # bytes of a weight's gradient when it is reduced
_BF16 = 2
_AT_ONCE = 2  # blocks: one computes while the next one is gathered


class Parts(NamedTuple):
    """What a strategy does with the networks of a module.

    Attributes:
        devices: among which networks are divided.
        sharded: networks in parts, by the names of the module's children.
        in_bf16: names of those that are gathered in bf16.
        on_cpu: whether the parts lie on the CPU.
    """

    devices: int
    sharded: Mapping[str, Denoiser]
    in_bf16: frozenset[str]
    on_cpu: bool

    @classmethod
    def of(cls, module: GenerativeModule, strategy: object, devices: int, mixed: bool) -> "Parts":
        """For any strategy of Lightning; only a `ShardedStrategy` divides.

        Raises:
            ValueError: where it refuses a network.
        """
        if not isinstance(strategy, ShardedStrategy):
            return cls(devices, {}, frozenset(), False)
        sharded = strategy.shards(module)
        in_bf16 = frozenset(name for name in sharded if mixed and strategy.gathers_in_bf16(module, name))
        return cls(devices, sharded, in_bf16, strategy.cpu_offload)

    def share(self, name: str, size: int) -> int:
        """Of the bytes that a child of the module has, those of one device's process."""
        return -(-size // self.devices) if name in self.sharded else size

    def is_on_cpu(self, name: str) -> bool:
        """Whether that share lies on the CPU."""
        return self.on_cpu and name in self.sharded

    def sent(self, gradients: Mapping[str, int]) -> float:
        """Bytes whose all-reduce takes as long as what is sent of the networks that move, at the least.

        An all-reduce is a reduce-scatter and a gathering; a sharded network is gathered twice, forward and backward.
        """
        half = {name: size / (2 if name in self.in_bf16 else 1) for name, size in gradients.items()}
        return sum(size if name not in self.sharded else size / 2 + half[name] for name, size in gradients.items())

    @property
    def gathered(self) -> int:
        """Bytes of the blocks of one network that are whole at once, with a block's gradient; 0 where none is sharded.

        The average is asked by no turn.
        """
        return max((self._gathered(name, net) for name, net in self.sharded.items() if name != "ema"), default=0)

    def _gathered(self, name: str, denoiser: Denoiser) -> int:
        def size(part: nn.Module) -> int:
            return sum(p.numel() * (_BF16 if name in self.in_bf16 else p.element_size()) for p in part.parameters())

        units = outermost(denoiser.network.units())
        rest = size(denoiser) - sum(size(unit) for unit in units)
        largest = max(units, key=size, default=None)
        if largest is None:
            return rest
        gradient = _GRADIENT * sum(p.numel() for p in largest.parameters() if p.requires_grad)
        return rest + _AT_ONCE * size(largest) + gradient


def outermost(units: list[nn.Module]) -> list[nn.Module]:
    """Those that are not inside another one."""
    inside = {id(part) for unit in units for part in unit.modules() if part is not unit}
    return [unit for unit in units if id(unit) not in inside]
