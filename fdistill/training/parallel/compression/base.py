"""What a compression is: a mean of gradients over the ranks that costs fewer bytes, and what it remembers for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fdistill.core.distributed import gradients_of, write_gradients
from fdistill.core.spec import Described

Memory = dict[str, Tensor]
"""What a compression remembers of one network from turn to turn."""


class Averaged(NamedTuple):
    """The outcome of one exchange."""

    mean: Tensor  # [n] float32, equal on all ranks
    memory: Memory  # of the same names and shapes as before
    sent: int  # bytes that this rank handed to collectives


class Compression(Described, ABC):
    """Averages the gradients of networks in place of a plain all-reduce; every rank ends with the same bits.

    All gradients of a network lie end to end in one vector [n], and each network has memory of its own. It is counted
    in gradients, not in steps: learning rates should change slowly. A turn whose gradients are not finite leaves it as
    it was, so that the NaN of a turn that is refused or skipped is in no later one.

    A subclass is a function of vector and memory, and has no state. With one process it compresses too.
    """

    equal_on_ranks: tuple[str, ...] = ()
    """Names of memory that is the same on every rank, and is saved once for all of them."""

    def __init__(self) -> None:
        self.sent = 0
        """Bytes that this rank handed to collectives in the last turn."""
        self._memory: dict[str, Memory] = {}

    @abstractmethod
    def start(self, shapes: Sequence[torch.Size]) -> Memory:
        """The memory before the first turn, on the CPU, for parameters of these shapes."""

    @abstractmethod
    def exchange(self, gradient: Tensor, shapes: Sequence[torch.Size], memory: Memory) -> Averaged:
        """Exchange what is sent of this rank's gradient.

        Args:
            gradient: [n] float32, of all parameters end to end.
            shapes: of the parameters.
            memory: of this network on this rank; it is not changed.
        """

    @torch.no_grad()
    def average(self, networks: Mapping[str, nn.Module]) -> None:
        """Replace the gradients of each network by the compressed mean over the ranks.

        A parameter without gradient counts as one of zeros: what was left out of it earlier may be sent now.
        """
        self.sent = 0
        for name, network in networks.items():
            gradients = gradients_of(network.parameters())
            shapes = [gradient.shape for gradient in gradients]
            vector = torch.cat([gradient.flatten().float() for gradient in gradients])
            memory = self._memory[name] if name in self._memory else self.start(shapes)
            memory = {key: value.to(vector.device) for key, value in memory.items()}
            mean, after, sent = self.exchange(vector, shapes, memory)
            finite = mean.isfinite().all()  # equal on all ranks, and not read by the host
            self._memory[name] = {key: torch.where(finite, after[key], value) for key, value in memory.items()}
            self.sent += sent
            write_gradients(gradients, mean)

    def log(self) -> dict[str, float]:
        """Bytes of the last turn and MiB of memory, of this rank, for the loggers."""
        held = sum(tensor.nbytes for memory in self._memory.values() for tensor in memory.values())
        return {"compression/bytes": float(self.sent), "compression/state_mib": held / 2**20}

    def state_dict(self) -> dict[str, Any]:
        """Plain values, and this rank's memory on the CPU."""
        memory = {name: {key: value.cpu() for key, value in held.items()} for name, held in self._memory.items()}
        return {"spec": self.spec(), "memory": memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's memory. After a change of their number each rank takes the mean over the ranks that were.

        The outcome of an exchange depends on the sum of what the ranks left out, so nothing of it is lost.

        Raises:
            ValueError: where the memory is of another compression.
        """
        if state["spec"] != self.spec():
            raise ValueError(f"memory is of the compression that goes on: expected {self.spec()}, got {state['spec']}")
        self._memory = {name: dict(held) for name, held in state["memory"].items()}
