"""PowerSGD: each matrix of the gradient by one of low rank, found by one power iteration a turn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fdistill.core.distributed import global_sum, world_size
from fdistill.core.random import generator_for
from fdistill.training.parallel.compression.base import Averaged, Compression, Memory


class PowerSGD(Compression):
    """P = M Q, P orthonormal, Q = M' P, and P Q' is the mean of M over the ranks (arXiv 1905.13727, with warm start).

    M is gradient and error of one parameter, [first axis, all others]. Both factors are linear in it, so that two
    all-reduces make those of the mean. Parameters for which the factors are no smaller, vectors above all, are sent
    whole. It does the arithmetic of torch's `powerSGD_hook`, whose state is no plain value, whose first turns cannot be
    compressed, and which waits for the device in each turn.
    """

    equal_on_ranks = ("factors",)

    def __init__(self, rank: int = 4) -> None:
        """Args:
        rank: of the matrices that are sent, >= 1.

        Raises:
            ValueError: where it is smaller.
        """
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank of PowerSGD is that of a matrix, at least 1: got {rank}")
        self.rank = rank

    def start(self, shapes: Sequence[torch.Size]) -> Memory:
        matrices = [_matrix(shape) for shape in shapes if self.shrinks(shape)]
        drawn = [torch.randn(m, self.rank, generator=generator_for(0, i)) for i, (_, m) in enumerate(matrices)]
        error = torch.zeros(sum(n * m for n, m in matrices))
        return {"error": error, "factors": torch.cat([torch.zeros(0), *(q.flatten() for q in drawn)])}

    def shrinks(self, shape: torch.Size) -> bool:
        """Whether the factors of a parameter have fewer entries than itself; then their rank is below its own."""
        n, m = _matrix(shape)
        return (n + m) * self.rank < n * m

    def exchange(self, gradient: Tensor, shapes: Sequence[torch.Size], memory: Memory) -> Averaged:
        parts = gradient.split([shape.numel() for shape in shapes])
        small = [self.shrinks(shape) for shape in shapes]
        sizes = [_matrix(shape) for shape, is_small in zip(shapes, small, strict=True) if is_small]
        errors = memory["error"].split([n * m for n, m in sizes])
        wanted = [part for part, is_small in zip(parts, small, strict=True) if is_small]
        wanted = [(part + e).view(size) for part, e, size in zip(wanted, errors, sizes, strict=True)]
        factors = _views(memory["factors"], [(m, self.rank) for _, m in sizes])
        left = [m @ torch.linalg.qr(q).Q for m, q in zip(wanted, factors, strict=True)]
        whole = [part for part, is_small in zip(parts, small, strict=True) if not is_small]
        *left, rest = _averaged([*left, torch.cat([gradient[:0], *whole])])
        left = [torch.linalg.qr(p).Q for p in left]  # a zero matrix has a basis too
        own = [m.T @ p for m, p in zip(wanted, left, strict=True)]
        right = _averaged(own)
        error = [m - p @ q.T for m, p, q in zip(wanted, left, own, strict=True)]
        products = iter([p @ q.T for p, q in zip(left, right, strict=True)])
        others = iter(rest.split([part.numel() for part in whole]))
        mean = torch.cat([next(products if is_small else others).flatten() for is_small in small])
        entries = sum((n + m) * self.rank for n, m in sizes) + len(rest)
        after = {"error": _flat(error, like=gradient), "factors": _flat(right, like=gradient)}
        return Averaged(mean, after, entries * gradient.element_size())


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a parameter as a matrix; a vector has one column."""
    rows = shape[0] if shape else 1
    return rows, shape.numel() // max(rows, 1)


def _flat(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat([like[:0], *(tensor.flatten() for tensor in tensors)])


def _views(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The tensors of these shapes that lie end to end in one vector."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]


def _averaged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each one's mean over the ranks, by one all-reduce."""
    if not tensors:
        return []
    return _views(global_sum(_flat(tensors, tensors[0].flatten())) / world_size(), [t.shape for t in tensors])
