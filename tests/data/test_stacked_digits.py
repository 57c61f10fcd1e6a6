"""Modes of stacked digits: one reader of single digits for all three channels, fitted to training digits alone."""

import math

import pytest
import torch

from fdistill.data import Batch, Digits, StackedDigits
from fdistill.evaluation.metrics import ModeCoverage

pytestmark = pytest.mark.system  # seconds, too many for make check

PLACES = torch.tensor([100, 10, 1])


def stacks(**arguments):
    return StackedDigits(**{"num_samples": 2_000, "num_held_out": 2_000, **arguments})


def channels(modes):
    """The three digits [n, 3] that a mode spells."""
    return modes[:, None] // PLACES % 10


@pytest.fixture(scope="module")
def held_out():
    """Data with all held-out stacks and their modes, read once."""
    data = stacks()
    return data, data.held_out_samples.copied(), data.read_modes(data.held_out_samples.copied().x)


@pytest.mark.parametrize("split_seed", range(2))
def test_at_least_98_of_100_held_out_digits_are_read_right_in_every_channel(split_seed):
    digits, data = Digits(split_seed=split_seed).held_out_samples.copied(), stacks(split_seed=split_seed)
    for channel in range(3):
        x = digits.x.roll(1, dims=0).repeat(1, 3, 1, 1)
        x[:, channel] = digits.x[:, 0]
        read = channels(data.read_modes(x))[:, channel]
        assert (read == digits.classes).double().mean() >= 0.98


def test_training_stacks_are_read_without_a_mistake():
    data = stacks()
    assert torch.equal(data.read_modes(data.train_samples.copied().x), data.train_samples.labels)


def test_held_out_stacks_are_read_with_few_mistakes(held_out):
    _, batch, modes = held_out
    assert modes.dtype == torch.int64
    assert (modes == batch.classes).double().mean() > 0.95


def test_permuting_the_channels_permutes_the_digits_of_the_mode(held_out):
    data, batch, modes = held_out
    order = torch.tensor([2, 0, 1])
    assert torch.equal(channels(data.read_modes(batch.x[:200, order])), channels(modes[:200])[:, order])


def test_the_mode_of_an_image_does_not_depend_on_its_neighbours(held_out):
    data, batch, modes = held_out
    assert torch.equal(torch.cat([data.read_modes(part) for part in batch.x[:30].split(7)]), modes[:30])
    assert data.read_modes(batch.x[:0]).shape == (0,)


def test_another_instance_reads_the_same_whatever_the_random_state_and_the_sizes(held_out):
    _, batch, modes = held_out
    torch.manual_seed(7)
    other = stacks(num_samples=3, num_held_out=5, seed=9, batch_size=2)
    assert torch.equal(other.read_modes(batch.x), modes)


def test_reading_leaves_the_random_state_alone():
    data = stacks()
    before = torch.get_rng_state()
    data.read_modes(data.held_out_samples.copied().x[:1])
    assert torch.equal(torch.get_rng_state(), before)


def test_held_out_digits_never_reach_the_reader(held_out, monkeypatch):
    _, batch, modes = held_out
    train, unseen = Digits().train_samples.copied(), Digits().held_out_samples.copied()
    spoilt = Batch(torch.zeros_like(unseen.x), torch.zeros_like(unseen.classes))
    monkeypatch.setattr("fdistill.data.stacked_digits.digit_splits", lambda split_seed: (train, spoilt))
    assert torch.equal(stacks().read_modes(batch.x), modes)


def test_nearly_right_images_are_read_like_the_right_ones(held_out):
    data, batch, modes = held_out
    noise = torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(0))
    assert (data.read_modes(batch.x + 0.1 * noise) == modes).double().mean() > 0.97


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(value):
    x = torch.zeros(5, 3, 8, 8)
    x[1, 2, 3, 4] = x[3, 0, 0, 0] = value
    with pytest.raises(ValueError, match="broken"):
        stacks().read_modes(x)


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 3, 16, 16), (3, 8, 8), (4, 192)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[n, 3, 8, 8\], got \[" + ", ".join(map(str, shape))):
        stacks().read_modes(torch.zeros(shape))


def test_real_stacks_cover_the_thousand_modes_evenly_and_a_channel_that_collapsed_costs_ln_10():
    data = stacks(num_samples=8_000)
    x, coverage = data.train_samples.copied().x, ModeCoverage(data.num_modes)
    coverage.update(data.read_modes(x), real=False)
    assert coverage.compute()["modes_covered"] > 980
    assert abs(coverage.compute()["mode_weight_kl"]) < 0.02
    x[:2_000, 1] = x[0, 1].clone()
    coverage.reset()
    coverage.update(data.read_modes(x[:2_000]), real=False)
    assert coverage.compute()["modes_covered"] <= 100
    assert coverage.compute()["mode_weight_kl"] == pytest.approx(math.log(10), abs=0.05)
