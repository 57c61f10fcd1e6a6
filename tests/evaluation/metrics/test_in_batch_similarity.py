"""Truths about the mean cosine between samples."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from fdistill.evaluation.metrics import in_batch_similarity


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_is_the_mean_cosine_of_all_pairs_of_different_rows():
    x = 0.5 + normal(30, 5)
    cosines = cosine_similarity(x[:, None], x[None], dim=2)
    exact = (cosines.sum() - 30) / (30 * 29)
    assert_close(in_batch_similarity(x), exact, rtol=1e-11, atol=0)


def test_is_one_for_copies_zero_for_an_orthogonal_basis_and_smallest_for_a_simplex():
    assert in_batch_similarity(normal(1, 4).repeat(9, 1)).item() == pytest.approx(1, rel=1e-12)
    assert in_batch_similarity(torch.eye(6)) == 0
    simplex = torch.eye(6, dtype=torch.float64) - 1 / 6
    assert in_batch_similarity(simplex).item() == pytest.approx(-1 / 5, rel=1e-12)


def test_lengths_and_rotations_change_nothing_and_a_shared_offset_much():
    x, turn = normal(40, 6), torch.linalg.qr(normal(6, 6, seed=1)).Q
    scaled = x * torch.rand(40, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64).add(0.1)
    assert_close(in_batch_similarity(scaled @ turn), in_batch_similarity(x), rtol=1e-10, atol=1e-14)
    assert in_batch_similarity(x).abs() < 0.1
    assert in_batch_similarity(x + 5) > 0.9


@pytest.mark.parametrize("n", [2, 10, 200])
def test_has_the_same_expectation_at_every_n(n):
    # Gaussian directions around a mean: E cos of two draws is |E u|^2
    mean_direction = torch.nn.functional.normalize(normal(200_000, 3, seed=9) + 1, dim=1).mean(0)
    values = torch.stack([in_batch_similarity(normal(n, 3, seed=seed) + 1) for seed in range(300)])
    error = values.std() / 300**0.5
    assert (values.mean() - mean_direction.square().sum()).abs() < 3 * error + 5e-3


def test_a_row_without_direction_and_a_single_one_are_refused():
    with pytest.raises(ValueError, match="rows"):
        in_batch_similarity(torch.cat([normal(5, 2), torch.zeros(2, 2)]))
    with pytest.raises(ValueError, match="samples"):
        in_batch_similarity(normal(1, 2))
