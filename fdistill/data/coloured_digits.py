"""Digits on a coloured ground: two sets of classes at once, the digit and the colour of the ground."""

import torch
from torch import Tensor

from fdistill.data.base import Batch, GenerativeDataModule, require_at_least
from fdistill.data.batches import InMemorySplit
from fdistill.data.digits import digit_splits, read_digits
from fdistill.models.condition import Takes, count_classes, takes_classes

GROUNDS = torch.tensor([[0.7, 0.1, 0.1], [0.1, 0.5, 0.1], [0.1, 0.2, 0.7], [0.1, 0.1, 0.1]])
"""Red, green, blue and black grounds, [4, 3] in [0, 1]."""


class ColouredDigits(GenerativeDataModule):
    """White digits of ``Digits`` on each of four grounds: colour 8x8 images in [-1, 1].

    A network of this data takes "digit" (10 classes) and "ground" (4 classes). The class number of a sample, which
    metrics read, is 4 digit + ground.

    Args:
        batch_size: Samples per batch and rank, >= 1.
        split_seed: Chooses the held-out digits, >= 0.
        seed: Seed of the order of the training stream, >= 0.
        num_workers: Processes that fetch batches, >= 0.
    """

    sample_shape = (3, 8, 8)

    def __init__(self, batch_size: int = 128, split_seed: int = 0, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(batch_size, seed, num_workers)
        require_at_least(0, split_seed=split_seed)
        self.split_seed = split_seed

    @property
    def takes(self) -> Takes:
        """The digit and the ground."""
        return takes_classes({"digit": 10, "ground": len(GROUNDS)})

    @property
    def num_classes(self) -> int:
        """Their 40 combinations."""
        return count_classes(self.takes)

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Return the two splits: each digit on each ground."""
        train, held_out = digit_splits(self.split_seed)
        return _on_grounds(train), _on_grounds(held_out)

    def read_modes(self, x: Tensor) -> Tensor:
        """Return 4 digit + ground of each image [n, 3, 8, 8], int64 [n] on its device, never -1.

        The ground is that from which the pixels lie nearest to the line towards white; the digit is read from where on
        the line they lie.
        """
        pixels = (x.detach().double().cpu().flatten(2) + 1) / 2  # [n, 3, 64]
        ground = GROUNDS.double()[:, :, None]
        towards_white = 1 - ground  # [4, 3, 1]
        offset = pixels[:, None] - ground  # [n, 4, 3, 64]
        ink = (offset * towards_white).sum(2) / towards_white.square().sum(1)  # [n, 4, 64]
        residual = (offset - ink[:, :, None] * towards_white).square().sum((2, 3))
        nearest = residual.argmin(1)
        digit = read_digits(2 * ink[torch.arange(len(x)), nearest] - 1, self.split_seed)
        return (len(GROUNDS) * digit + nearest).to(x.device)


def _on_grounds(digits: Batch) -> InMemorySplit:
    ink = (digits.x + 1) / 2
    ground = GROUNDS[:, :, None, None]
    x = ink[:, None] + (1 - ink[:, None]) * ground  # [N, 4, 3, 8, 8]
    classes = len(GROUNDS) * digits.classes[:, None] + torch.arange(len(GROUNDS))
    return InMemorySplit(2 * x.flatten(0, 1) - 1, classes.flatten())
