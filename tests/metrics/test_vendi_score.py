"""Truths about the Vendi score; reference values by vendi-score 0.0.3 with round-off eigenvalues left out."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fdistill.metrics import vendi_score

ORDERS = [0.5, 1.0, 2.0, math.inf]


def rows(n=50, d=8):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((n, d)))


@pytest.mark.parametrize("order", ORDERS)
def test_of_orthogonal_samples_is_their_number(order):
    assert vendi_score(torch.eye(5), order).item() == pytest.approx(5, rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [3, 40])
def test_of_identical_samples_is_one(order, width):
    assert vendi_score(rows(1, width).expand(5, -1), order).item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_of_two_even_clusters_is_two(order):
    clusters = torch.tensor([[1.0, 0, 0]] * 3 + [[0, 0, 7.0]] * 3)
    assert vendi_score(clusters, order).item() == pytest.approx(2, rel=1e-9)


@pytest.mark.parametrize(
    ("order", "value"),
    [(0.5, 7.685785355468973), (1.0, 7.397530734332697), (2.0, 6.9086950008835855), (math.inf, 4.713611105461818)],
)
def test_of_random_rows_agrees_with_vendi_score(order, value):
    assert vendi_score(rows(), order).item() == pytest.approx(value, rel=1e-12)


def test_shifted_features_look_alike_until_centred():
    shifted = rows() + 5
    assert vendi_score(shifted).item() == pytest.approx(1.2335055836762414, rel=1e-12)
    assert vendi_score(shifted - shifted.mean(0)).item() == pytest.approx(7.389126231759191, rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_more_dimensions_than_samples_give_the_same_as_padding_with_zeros(order):
    x = rows(12, 8)
    assert_close(vendi_score(torch.nn.functional.pad(x, (0, 20)), order), vendi_score(x, order), rtol=1e-10, atol=0)


def test_order_two_is_the_frobenius_norm_of_the_kernel():
    unit = torch.nn.functional.normalize(rows())
    assert_close(vendi_score(rows(), 2.0), 50**2 / (unit @ unit.T).square().sum(), rtol=1e-10, atol=0)


def test_falls_with_the_order_and_is_continuous_at_one():
    scores = torch.stack([vendi_score(rows(), order) for order in (0.25, 0.5, 1.0, 2.0, 4.0, math.inf)])
    assert (scores.diff() < 0).all()
    assert_close(vendi_score(rows(), 1 + 1e-6), vendi_score(rows()), rtol=1e-5, atol=0)


def test_wrong_orders_and_zero_rows_raise():
    for order in (0, -1, math.nan):
        with pytest.raises(ValueError, match="order lies in"):
            vendi_score(rows(), order)
    with pytest.raises(ValueError, match="got 1 of 3"):
        vendi_score(torch.tensor([[1.0, 0], [0, 0], [0, 1]]))
    with pytest.raises(ValueError, match="at least 2 samples"):
        vendi_score(torch.ones(1, 3))
