"""Truths about class and mode histograms."""

import math

import pytest
import torch

from fdistill.metrics import class_entropy, mode_weight_kl, modes_covered


def test_entropy_is_one_for_even_classes_and_zero_for_one():
    assert class_entropy(torch.arange(10).repeat(7), 10).item() == pytest.approx(1, rel=1e-12)
    assert class_entropy(torch.full((20,), 3), 10) == 0


def test_entropy_of_half_the_classes_is_the_ratio_of_logarithms():
    assert class_entropy(torch.arange(5), 10).item() == pytest.approx(math.log(5) / math.log(10), rel=1e-12)


def test_kl_of_the_right_weights_is_zero_and_counts_are_normalised():
    labels = torch.tensor([0, 0, 0, 1])
    assert mode_weight_kl(labels, torch.tensor([0.75, 0.25])) == 0
    assert mode_weight_kl(labels, torch.tensor([3, 1])) == 0


def test_kl_of_half_the_modes_is_ln_two():
    assert mode_weight_kl(torch.arange(50), torch.ones(100)).item() == pytest.approx(math.log(2), rel=1e-12)


def test_kl_of_a_mode_that_the_reference_lacks_is_infinite():
    assert mode_weight_kl(torch.tensor([0, 1]), torch.tensor([1.0, 0.0])) == math.inf


def test_kl_of_a_finite_sample_has_the_first_order_bias():
    labels = torch.randint(1000, (26_000,), generator=torch.Generator().manual_seed(0))
    assert mode_weight_kl(labels, torch.ones(1000)).item() == pytest.approx(999 / 52_000, rel=0.15)


def test_a_mode_is_covered_from_its_share_upwards():
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    assert [int(modes_covered(labels, 4, share)) for share in (0.001, 0.01, 0.02, 0.09, 0.5, 1.0)] == [3, 3, 2, 2, 1, 0]


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0]), torch.zeros(0).long()]
)
def test_broken_labels_raise(labels):
    with pytest.raises(ValueError, match="labels"):
        class_entropy(labels, 3)


def test_broken_arguments_raise():
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="num_classes >= 2"):
        class_entropy(torch.zeros(3).long(), 1)
    with pytest.raises(ValueError, match="weights"):
        mode_weight_kl(labels, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        modes_covered(labels, 2, 0.0)
