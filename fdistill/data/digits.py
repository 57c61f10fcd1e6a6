"""The 1,797 hand-written 8x8 digits that ship with scikit-learn (UCI Optical Recognition of Handwritten Digits)."""

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fdistill.data.base import Batch, GenerativeDataModule, require_at_least
from fdistill.data.batches import InMemorySplit
from fdistill.data.splits import stratified_split

if TYPE_CHECKING:
    from sklearn.svm import SVC

NUM_HELD_OUT = 500  # leaves 1,297 for training


class Digits(GenerativeDataModule):
    """Grey 8x8 digits in [-1, 1] with their class; 1,297 for training, 500 held out, stratified by class.

    Args:
        batch_size: Samples per batch and rank, >= 1.
        split_seed: Chooses the held-out digits, >= 0.
        seed: Seed of the order of the training stream, >= 0.
        num_workers: Processes that fetch batches, >= 0.
    """

    sample_shape = (1, 8, 8)
    num_classes = 10

    def __init__(self, batch_size: int = 128, split_seed: int = 0, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(batch_size, seed, num_workers)
        require_at_least(0, split_seed=split_seed)
        self.split_seed = split_seed

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Return the two splits."""
        train, held_out = digit_splits(self.split_seed)
        return InMemorySplit(train.x, train.classes), InMemorySplit(held_out.x, held_out.classes)


def digit_splits(split_seed: int) -> tuple[Batch, Batch]:
    """Return the training and the held-out digits, x [N, 1, 8, 8] in [-1, 1]."""
    from sklearn.datasets import load_digits  # a second of imports, which other data do without

    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1  # ink 0..16
    labels = torch.from_numpy(digits.target).long()
    train, held_out = stratified_split(labels, NUM_HELD_OUT, split_seed)
    return Batch(x[train], labels[train]), Batch(x[held_out], labels[held_out])


@functools.cache
def digit_reader(split_seed: int) -> "SVC":
    """Return a support vector machine, which has no random state, fitted to the training digits of a split."""
    from sklearn.svm import SVC

    train, _ = digit_splits(split_seed)
    return SVC(C=10.0).fit(_flat(train.x), train.classes.numpy())


def read_digits(x: Tensor, split_seed: int) -> Tensor:
    """Return the digits int64 [n] on the CPU of images [n, ...] of 64 values in [-1, 1]; see `digit_reader`."""
    return torch.from_numpy(digit_reader(split_seed).predict(_flat(x)))


def _flat(digits: Tensor) -> np.ndarray:
    """Return digits as float64 [n, 64]."""
    return digits.detach().flatten(1).double().cpu().numpy()
