"""Blocks of rows are the rows, and their checks are those of whole features."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.metrics.blocks import ROWS, blocks, check_features, check_pair, check_width, squared_distances


@pytest.mark.parametrize("n", [1, ROWS, ROWS + 1, 2 * ROWS + 5])
def test_blocks_below_each_other_are_the_features_in_float64(n):
    x = torch.arange(3 * n, dtype=torch.float32).view(n, 3).requires_grad_()
    parts = list(blocks(x))
    assert max(map(len, parts)) <= ROWS
    assert torch.equal(torch.cat(parts), x.detach().double())
    assert not any(part.requires_grad for part in parts)
    assert [len(part) for part in blocks(x[:5], 2)] == {1: [1]}.get(n, [2, 2, 1])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_broken_rows_are_counted(bad):
    with pytest.raises(ValueError, match="got 2 of 3"):
        check_features("x", torch.tensor([[0.0, 1.0], [bad, 1.0], [bad, bad]]))


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (0, 2), (2, 0), ()])
def test_features_are_a_matrix_with_rows(shape):
    with pytest.raises(ValueError, match="x "):
        check_features("x", torch.zeros(shape))


@pytest.mark.parametrize(
    ("n", "d", "says"), [(1, 3, "at least 2 samples, got 1"), (5, 2, "expected 3 features, got 2")]
)
def test_a_pair_that_does_not_fit_is_refused(n, d, says):
    with pytest.raises(ValueError, match=f"^generated .*{says}"):
        check_pair(torch.zeros(n, d), torch.zeros(5, 3), minimum=2)


def test_features_of_another_width_are_refused():
    check_width(3, torch.zeros(5, 3))
    with pytest.raises(ValueError, match="features"):
        check_width(3, torch.zeros(5, 2))


def test_squared_distances_are_those_of_all_pairs():
    a, b = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = (a[:, None] - b[None]).square().sum(2)
    assert_close(squared_distances(a, b), exact, rtol=1e-12, atol=1e-14)
    assert squared_distances(a, a).min() >= 0
