"""The dark squares of a chequerboard: flat densities with sharp edges, where samples that crowd together show."""

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.data.base import GenerativeDataModule, require_at_least
from fdistill.data.batches import InMemorySplit


class Chequerboard(GenerativeDataModule):
    """Uniform samples of the dark squares of a board centred at 0, labelled with their square.

    Squares have side 1 and the bottom left one is dark, so that a board of 4 fills [-2, 2]^2 with 8 dark squares, and
    each coordinate has the variance side^2 / 12.

    Args:
        side: Squares along each side, even and >= 2.
        num_samples: Size of the training split, >= 1.
        num_held_out: Size of the held-out split, >= 1.
        batch_size: Samples per batch and rank, >= 1.
        split_seed: Seed of the samples themselves, >= 0.
        seed: Seed of the order of the training stream, >= 0.
        num_workers: Processes that fetch batches, >= 0.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        side: int = 4,
        num_samples: int = 50_000,
        num_held_out: int = 10_000,
        batch_size: int = 256,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        require_at_least(1, num_samples=num_samples, num_held_out=num_held_out)
        require_at_least(0, split_seed=split_seed)
        if side < 2 or side % 2:
            raise ValueError(f"side of a chequerboard is even and at least 2: got {side}; 4 makes 8 dark squares")
        self.side, self.num_samples, self.num_held_out, self.split_seed = side, num_samples, num_held_out, split_seed

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(2,)."""
        return (2,)

    @property
    def num_classes(self) -> int:
        """Number of dark squares."""
        return self.side**2 // 2

    def read_modes(self, x: Tensor) -> Tensor:
        """Return the dark square of each point [n, 2], int64 [n], row by row from the bottom left; -1 outside of all.

        Raises:
            ValueError: The points are of another dimension, or one is NaN or infinite.
        """
        if x.ndim != 2 or x.shape[1] != 2 or not x.isfinite().all():
            raise ValueError(
                f"points of a chequerboard are finite and [n, 2]: got {list(x.shape)} with "
                f"{int((~x.isfinite()).sum())} broken numbers; look for the NaN where they are made"
            )
        column, row = (x.double() + self.side / 2).floor().long().unbind(1)
        inside = ((column >= 0) & (column < self.side) & (row >= 0) & (row < self.side)) & ((column + row) % 2 == 0)
        return torch.where(inside, row * (self.side // 2) + column // 2, -1)

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Draw the two splits."""
        training, held_out = (
            self._draw(n, generator_for(self.split_seed, i))
            for i, n in enumerate((self.num_samples, self.num_held_out))
        )
        return training, held_out

    def _draw(self, n: int, generator: torch.Generator) -> InMemorySplit:
        labels = torch.randint(self.num_classes, (n,), generator=generator)
        row = labels // (self.side // 2)
        column = 2 * (labels % (self.side // 2)) + row % 2
        corner = torch.stack([column, row], dim=1) - self.side / 2
        return InMemorySplit((corner + torch.rand(n, 2, generator=generator, dtype=torch.float64)).float(), labels)
