"""Data for those who have a teacher and no samples: conditions to sample, and nothing to compare with."""

from typing import NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fdistill.data.base import GenerativeDataModule, require_at_least
from fdistill.data.batches import InMemorySplit
from fdistill.models.condition import Takes, count_classes, takes_classes

_LABELS = 4096  # at least so many before a pass over the classes ends


class LatentsOnly(GenerativeDataModule):
    """Batches without samples, to distil with objectives that need no real data: the latents are the module's own.

    The classes come in random order, each equally often in every pass; 0 where there are none. ``x`` has the
    shape and type of samples and is NaN throughout, so that a loss that reads it stops the run. ``has_real`` is False,
    and asking for a split, its statistics or a validation loader is an error; ``fdistill predict`` works. ::

        trainer:
          limit_val_batches: 0
        data:
          class_path: LatentsOnly
          init_args:
            sample_shape: [1, 8, 8]
            num_classes: 10

    Args:
        sample_shape: Shape of one sample of the teacher, each size >= 1.
        num_classes: Classes of the teacher, >= 0; 0 where it is unconditional.
        batch_size: Latents per batch and rank, >= 1.
        seed: Seed of the order of the labels, >= 0.
        num_workers: Processes that fetch batches, >= 0.
        classes: Sets of classes by their names, each >= 1, of a teacher that takes several; in place of num_classes.

    Raises:
        ValueError: An argument is out of its range.
    """

    has_real = False

    def __init__(
        self,
        sample_shape: list[int],
        num_classes: int = 0,
        batch_size: int = 128,
        seed: int = 0,
        num_workers: int = 0,
        classes: dict[str, int] | None = None,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        require_at_least(0, num_classes=num_classes)
        require_at_least(1, **{f"classes.{name}": count for name, count in (classes or {}).items()})
        if classes and num_classes:
            raise ValueError(f"classes stand in place of num_classes: expected one, got {classes} and {num_classes}")
        if not sample_shape or min(sample_shape) < 1:
            raise ValueError(
                f"sample_shape is the shape of one sample: expected sizes >= 1 like [1, 8, 8], got {sample_shape}"
            )
        self._sample_shape, self._num_classes, self.classes = tuple(sample_shape), num_classes, classes

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """What was given."""
        return self._sample_shape

    @property
    def num_classes(self) -> int:
        """What was given; of several sets of classes, their combinations."""
        return count_classes(self.takes)

    @property
    def takes(self) -> Takes:
        """The sets of classes."""
        return takes_classes(self.classes or self._num_classes)

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Return the classes in turn, twice."""
        classes = max(self.num_classes, 1)
        split = NoSamples(self.sample_shape, torch.arange(classes).repeat(-(-_LABELS // classes)))
        return split, split

    @property
    def train_samples(self) -> InMemorySplit:
        """An error: there is none."""
        self._refuse("a training split")

    @property
    def held_out_samples(self) -> InMemorySplit:
        """An error: there is none."""
        self._refuse("a held-out split")

    def data_std(self) -> float:
        """An error: there is none."""
        self._refuse("the data's standard deviation")

    def val_dataloader(self) -> DataLoader:
        """An error: there is nothing to validate with."""
        self._refuse("validation", "set trainer.limit_val_batches: 0")

    def predict_dataloader(self) -> DataLoader:
        """Return this rank's part of the classes in turn."""
        return super().val_dataloader()

    def _refuse(self, asked: str, remedy: str = "leave out what asks for it") -> NoReturn:
        raise ValueError(
            f"{type(self).__name__} has no real samples: got asked for {asked}; {remedy}, or give real data"
        )


class NoSamples(InMemorySplit):
    """Labels beside NaN samples that take no memory."""

    def __init__(self, sample_shape: tuple[int, ...], labels: Tensor) -> None:
        self.x = torch.full((), torch.nan).expand(len(labels), *sample_shape)  # what its base would refuse
        self.labels, self.mirrored = labels, False
