"""The largest entries alone: top-k with error feedback, and EF21 with momentum."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fdistill.core.distributed import all_ranks, world_size
from fdistill.training.parallel.compression.base import Averaged, Compression, Memory


class Sparse(Compression):
    """Sends a share of the entries of a vector, those of largest absolute value, with their indices."""

    def __init__(self, share: float) -> None:
        """Args:
        share: of a network's gradient, in (0, 1]; at least one entry is sent.

        Raises:
            ValueError: where it is none.
        """
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share is of the entries that are sent, in (0, 1]: got {share}")
        self.share = share

    def mean_of_largest(self, vector: Tensor) -> tuple[Tensor, Tensor, int]:
        """C(v) of this rank, its mean over the ranks, both [n], and the bytes sent.

        C is a contraction: |C(v) - v|^2 <= (1 - k/n) |v|^2.
        """
        indices = vector.abs().topk(math.ceil(self.share * len(vector)), sorted=False).indices  # NaN is the largest
        values = vector[indices]
        own = torch.zeros_like(vector).index_add_(0, indices, values)
        sent = indices.to(torch.int32 if len(vector) < 2**31 else torch.int64)
        mean = torch.zeros_like(vector)
        for index, value in zip(all_ranks(sent), all_ranks(values), strict=True):
            mean.index_add_(0, index, value)  # one rank after another: the same bits on all of them
        return own, mean / world_size(), sent.nbytes + values.nbytes


class TopK(Sparse):
    """Top-k with error feedback: what was not sent is added to the next gradient (arXiv 1809.07599, 1901.09847).

    The sum of all that was ever sent is the sum of all gradients less the memory.
    """

    def __init__(self, share: float = 0.01) -> None:
        """Args:
        share: of a network's gradient that is sent, in (0, 1].
        """
        super().__init__(share)

    def start(self, shapes: Sequence[torch.Size]) -> Memory:
        return {"error": torch.zeros(_entries(shapes))}

    def exchange(self, gradient: Tensor, shapes: Sequence[torch.Size], memory: Memory) -> Averaged:
        wanted = memory["error"] + gradient
        own, mean, sent = self.mean_of_largest(wanted)
        return Averaged(mean, {"error": wanted - own}, sent)


class EF21(Sparse):
    """Each rank sends the largest entries of the change of its gradient (arXiv 2106.05203), averaged over turns.

    h <- h + C(v - h) on each rank, v <- m v + (1 - m) gradient, and the step follows the mean of h. Without momentum
    (m = 0) it is EF21, which does not converge on gradients of small batches; with it EF21-SGDM (arXiv 2305.15155,
    whose eta is 1 - m).
    """

    equal_on_ranks = ("mean", "begun")

    def __init__(self, share: float = 0.01, momentum: float = 0.9) -> None:
        """Args:
        share: of a network's gradient that is sent, in (0, 1].
        momentum: m, in [0, 1).

        Raises:
            ValueError: where one is out of its range.
        """
        super().__init__(share)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum of EF21 is the share of the old average that stays, in [0, 1): got {momentum}")
        self.momentum = momentum

    def start(self, shapes: Sequence[torch.Size]) -> Memory:
        names = ("estimate", "mean", "average") if self.momentum else ("estimate", "mean")
        return {name: torch.zeros(_entries(shapes)) for name in names} | {"begun": torch.zeros(())}

    def exchange(self, gradient: Tensor, shapes: Sequence[torch.Size], memory: Memory) -> Averaged:
        after, average = {"begun": torch.ones_like(memory["begun"])}, gradient
        if self.momentum:
            kept = self.momentum * memory["begun"]  # the first gradient is the first average
            after["average"] = average = torch.lerp(gradient, memory["average"], kept)
        own, change, sent = self.mean_of_largest(average - memory["estimate"])
        after |= {"estimate": memory["estimate"] + own, "mean": memory["mean"] + change}
        return Averaged(after["mean"], after, sent)


def _entries(shapes: Sequence[torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes)
