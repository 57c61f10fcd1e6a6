"""Truths about memorisation: what a copy is, and how many copies chance makes."""

import math

import pytest
import torch

from fdistill.evaluation.metrics import MemorizedFraction, memorized, memorized_fraction


def uniform(n, d, seed):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_copy_is_three_times_closer_to_one_training_sample_than_to_any_other():
    training = torch.tensor([[0.0], [4.0]])
    generated = torch.tensor([[0.0], [0.999], [1.001], [2.0], [3.001], [4.0], [-1.999], [-2.001]])
    assert memorized(generated, training).tolist() == [True, True, False, False, True, True, True, False]
    assert memorized(generated, training, ratio=0.01).tolist() == [i in (0, 5) for i in range(8)]


def test_a_ratio_of_just_one_third_is_no_copy():
    assert not memorized(torch.tensor([[1.0]]), torch.tensor([[0.0], [4.0]])).any()


@pytest.mark.parametrize("d", [1, 2, 3])
def test_chance_copies_a_share_of_the_ratio_to_the_power_of_the_dimension(d):
    # among uniform points (d_1 / d_2)^d is uniform on (0, 1); samples near the border are left out
    training, generated = uniform(4000, d, 0), 0.2 + 0.6 * uniform(4000, d, 1)
    for ratio in (1 / 3, 0.7):
        exact = ratio**d
        assert memorized_fraction(generated, training, ratio) == pytest.approx(
            exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000)
        )


def test_all_training_samples_are_copies_of_themselves_and_one_in_a_hundred_counts_as_such():
    training = uniform(500, 20, 0)
    assert memorized_fraction(training, training) == 1
    mixed = torch.cat([training[:1] + 1e-6, uniform(99, 20, 1)])
    assert memorized_fraction(mixed, training) == 0.01


def test_an_exact_copy_of_a_repeated_training_sample_counts_and_a_near_one_does_not():
    training = uniform(50, 8, 0).repeat(2, 1)
    assert memorized(training[:5], training).all()
    assert not memorized(training[:5] + 1e-6, training).any()


def test_of_constant_features_all_are_copies_and_of_others_none():
    same = torch.full((6, 3), 0.1)
    assert memorized_fraction(same, same) == 1
    assert memorized_fraction(same + 1, same) == 0


def test_scale_and_place_change_nothing():
    training, generated = uniform(300, 2, 0), uniform(200, 2, 1)
    assert memorized(1e-3 * generated + 5, 1e-3 * training + 5).equal(memorized(generated, training))


def test_too_few_samples_and_wrong_arguments_raise():
    training = uniform(5, 2, 0)
    with pytest.raises(ValueError, match="training"):
        memorized(training, training[:1])
    with pytest.raises(ValueError, match="generated"):
        memorized(training[:0], training)
    for ratio in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            MemorizedFraction(ratio)
