"""Three random digits as red, green and blue: 1,000 labelled modes (the 8x8 sibling of Stacked MNIST)."""

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.data.base import Batch, GenerativeDataModule, require_at_least
from fdistill.data.batches import InMemorySplit
from fdistill.data.digits import digit_splits, read_digits

PLACES = (100, 10, 1)  # what the digits of the red, the green and the blue channel count


class StackedDigits(GenerativeDataModule):
    """Colour 8x8 images in [-1, 1] whose channels are digits a, b, c; the label is 100 a + 10 b + c.

    Training images stack training digits, held-out images stack held-out digits of ``Digits`` with the same split_seed.
    As in Stacked MNIST (Metz et al. 2017, "Unrolled GANs"), the three digits are drawn independently and uniformly,
    and modes are read one digit at a time.

    Args:
        batch_size: Samples per batch and rank, >= 1.
        num_samples: Size of the training split, >= 1.
        num_held_out: Size of the held-out split, >= 1.
        split_seed: Chooses the held-out digits and which digits are stacked, >= 0.
        seed: Seed of the order of the training stream, >= 0.
        num_workers: Processes that fetch batches, >= 0.
    """

    sample_shape = (3, 8, 8)
    num_classes = 1000

    def __init__(
        self,
        batch_size: int = 128,
        num_samples: int = 50_000,
        num_held_out: int = 5_000,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        require_at_least(1, num_samples=num_samples, num_held_out=num_held_out)
        require_at_least(0, split_seed=split_seed)
        self.num_samples, self.num_held_out, self.split_seed = num_samples, num_held_out, split_seed

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Return the two splits."""
        train, held_out = digit_splits(self.split_seed)
        return (
            _stack(train, self.num_samples, generator_for(self.split_seed, 0)),
            _stack(held_out, self.num_held_out, generator_for(self.split_seed, 1)),
        )

    def read_modes(self, x: Tensor) -> Tensor:
        """Return the mode 100 a + 10 b + c of each image [n, 3, 8, 8], int64 [n] on its device, never -1.

        One classifier of single digits reads all three channels: about 99 of 100 held-out digits right, so 97 of 100
        modes, and something in any image whatever. It is fitted to the training digits on first use (0.03 s); the same
        split_seed gives the same one.

        Raises:
            ValueError: The images are of another shape, or one holds a NaN or an infinity.
        """
        if tuple(x.shape[1:]) != self.sample_shape:
            raise ValueError(f"modes are read in stacks of three digits: expected [n, 3, 8, 8], got {list(x.shape)}")
        broken = int((~x.isfinite()).flatten(1).any(dim=1).sum())
        if broken:
            raise ValueError(
                f"an image holds finite numbers: expected 0 broken ones, got {broken} of {len(x)};"
                " look for the NaN where they are made"
            )
        if len(x) == 0:
            return torch.zeros(0, dtype=torch.int64, device=x.device)
        digits = read_digits(x.reshape(-1, 1, 8, 8), self.split_seed)
        return (digits.reshape(-1, 3) @ torch.tensor(PLACES)).to(x.device)


def _stack(digits: Batch, num_samples: int, generator: torch.Generator) -> InMemorySplit:
    chosen = torch.randint(len(digits.x), (num_samples, 3), generator=generator)
    return InMemorySplit(digits.x[chosen].squeeze(2), digits.classes[chosen] @ torch.tensor(PLACES))
