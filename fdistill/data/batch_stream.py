"""The endless training stream: the samples in batch i of rank r are a pure function of (seed, i, r, world)."""

from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import Sampler

from fdistill.core.random import generator_for


class EndlessBatchSampler(Sampler[list[int]]):
    """Batches of indices from the concatenation of one random permutation per epoch, without end.

    The stream's position p is sample p mod N of the permutation of epoch p div N, so a batch may straddle epochs.
    Batch i of all ranks together is positions [i B W, (i + 1) B W); rank r takes every W-th of them, beginning with the
    r-th. It has no ``__len__``, so that the trainer counts steps and not epochs.

    Args:
        num_samples: N, the size of the split.
        batch_size: B, samples per batch and rank.
        seed: Seed of the permutations.
        rank: r, in [0, world_size).
        world_size: W, the number of ranks.
        first_batch: Called when an iteration begins; returns the number of its first batch.
        tells_epoch: Give index + (epoch + 1) N in place of the index, for a split that is drawn anew in every epoch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first_batch: Callable[[], int] = lambda: 0,
        tells_epoch: bool = False,
    ) -> None:
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size, self.first_batch = rank, world_size, first_batch
        self.tells_epoch = tells_epoch
        self._permutations: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[list[int]]:
        for number in count(self.first_batch()):
            yield self.batch(number).tolist()

    def batch(self, number: int) -> Tensor:
        """Return the sample indices [B] of this rank's batch ``number``, counted from the start of the run."""
        first = number * self.batch_size * self.world_size + self.rank
        positions = torch.arange(first, first + self.batch_size * self.world_size, self.world_size)
        epochs, offsets = positions // self.num_samples, positions % self.num_samples
        needed = range(int(epochs[0]), int(epochs[-1]) + 1)
        self._permutations = {e: self._permutation(e) for e in needed}  # forgets the epochs that are over
        indices = torch.cat([self._permutations[e][offsets[epochs == e]] for e in needed])
        return indices + (epochs + 1) * self.num_samples if self.tells_epoch else indices

    def _permutation(self, epoch: int) -> Tensor:
        if epoch in self._permutations:
            return self._permutations[epoch]
        return torch.randperm(self.num_samples, generator=generator_for(self.seed, epoch))
