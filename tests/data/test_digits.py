"""Digits: fixed sizes, stratified and disjoint splits, and stacks whose label is written in their channels."""

import pytest
import torch
from sklearn.datasets import load_digits

from fdistill.data import Digits, StackedDigits, stratified_split


def rows(x):
    """Images as a set of hashable rows."""
    return [tuple(image) for image in x.flatten(1).tolist()]


@pytest.mark.parametrize("split_seed", [0, 1])
def test_the_splits_are_a_partition_of_the_published_digits(split_seed):
    data = Digits(split_seed=split_seed)
    assert (len(data.train_samples), len(data.held_out_samples)) == (1297, 500)
    published = load_digits()
    ours = rows(torch.cat([data.train_samples.copied().x, data.held_out_samples.copied().x]) * 8 + 8)
    labels = torch.cat([data.train_samples.labels, data.held_out_samples.labels]).tolist()
    theirs = rows(torch.from_numpy(published.images).float())
    assert sorted(zip(ours, labels, strict=True)) == sorted(zip(theirs, published.target.tolist(), strict=True))


def test_every_class_is_held_out_in_proportion_to_within_one_sample():
    data = Digits()
    train, held_out = data.train_samples.labels.bincount(), data.held_out_samples.labels.bincount()
    assert len(train) == len(held_out) == 10
    assert ((train + held_out) * 500 / 1797 - held_out).abs().max() < 1


def test_white_and_black_are_one_and_minus_one():
    x = Digits().train_samples.copied().x
    assert (float(x.min()), float(x.max())) == (-1, 1)


def test_one_epoch_of_the_loader_is_the_training_split():
    data = Digits(batch_size=1297)
    batch = next(iter(data.train_dataloader()))
    pairs = [sorted(zip(rows(b.x), b.classes.tolist(), strict=True)) for b in (batch, data.train_samples.copied())]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("sizes", [[5], [1, 1, 50], [2, 0, 3, 95], [10] * 10, [1, 2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_a_stratified_split_keeps_shares_and_leaves_no_class_without_training_samples(sizes, fraction):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    wanted = round(fraction * len(labels))
    train, held_out = stratified_split(labels, wanted, seed=3)
    assert torch.equal(torch.cat([train, held_out]).sort().values, torch.arange(len(labels)))
    assert len(held_out) <= wanted
    counts = labels[held_out].bincount(minlength=len(sizes))
    assert (counts - torch.tensor(sizes) * wanted / len(labels)).abs().max() <= 1
    assert ((labels[train].bincount(minlength=len(sizes)) > 0) == (torch.tensor(sizes) > 0)).all()


@pytest.fixture(scope="module")
def stacked():
    return StackedDigits(num_samples=20_000, num_held_out=1_000)


@pytest.mark.parametrize("split", ["train_samples", "held_out_samples"])
def test_each_channel_is_a_digit_of_the_same_split_and_the_label_spells_the_three(stacked, split):
    digits, batch = (getattr(data, split).copied() for data in (Digits(), stacked))
    class_of = dict(zip(rows(digits.x), digits.classes.tolist(), strict=True))
    channels = [[class_of[row] for row in rows(batch.x[:1000, c])] for c in range(3)]
    assert [int(f"{a}{b}{c}") for a, b, c in zip(*channels, strict=True)] == batch.classes[:1000].tolist()


def test_all_thousand_modes_are_there_and_channels_are_independent(stacked):
    labels = stacked.train_samples.labels
    assert len(labels.unique()) == 1000
    digits = torch.stack([labels // 100, labels // 10 % 10, labels % 10]).double()
    assert torch.corrcoef(digits).fill_diagonal_(0).abs().max() < 5 / len(labels) ** 0.5


def test_stacks_are_many_different_images(stacked):
    assert len(set(rows(stacked.train_samples.copied().x))) > 19_900


@pytest.mark.parametrize("bad", ["num_samples", "num_held_out"])
def test_empty_splits_are_refused(bad):
    with pytest.raises(ValueError, match=f"expected {bad} >= 1"):
        StackedDigits(**{bad: 0})
