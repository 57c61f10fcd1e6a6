"""Samples of a chequerboard are uniform on its dark squares, and know which."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.data import Chequerboard

N = 40_000


def test_every_dark_square_has_its_share_and_is_filled_evenly():
    data = Chequerboard(num_samples=N, num_held_out=10)
    x, labels, _ = data.train_samples.copied()
    share, deviation = 1 / 8, (1 / 8 * 7 / 8 / N) ** 0.5
    assert ((labels.bincount(minlength=8) / N - share).abs() < 5 * deviation).all()
    within = (x.double() + 2) % 1  # the place inside a square is uniform: mean 1/2, variance 1/12
    assert ((within.mean(0) - 1 / 2).abs() < 5 * (1 / 12 / N) ** 0.5).all()
    assert_close(within.var(0), torch.full((2,), 1 / 12, dtype=torch.float64), rtol=0.03, atol=0)


def test_a_board_has_the_mean_and_variance_of_its_coordinates():
    x = Chequerboard(side=6, num_samples=N, num_held_out=10).train_samples.copied().x.double()
    assert_close(x.var(0), torch.full((2,), 6**2 / 12, dtype=torch.float64), rtol=0.03, atol=0)
    assert (x.mean(0).abs() < 5 * (3 / N) ** 0.5).all()


def test_squares_are_counted_from_the_bottom_left_and_light_ones_are_none():
    board = Chequerboard(side=4)
    centres = torch.tensor([[-1.5, -1.5], [0.5, -1.5], [-0.5, -0.5], [1.5, 1.5], [-0.5, -1.5], [2.5, 1.5], [-2.1, 0.5]])
    assert board.read_modes(centres).tolist() == [0, 1, 2, 7, -1, -1, -1]


@pytest.mark.parametrize("side", [0, 3, -2])
def test_a_side_that_is_odd_or_empty_is_refused(side):
    with pytest.raises(ValueError, match=f"even and at least 2: got {side}"):
        Chequerboard(side=side)


@pytest.mark.parametrize(
    ("x", "got"),
    [(torch.zeros(3, 3), r"got \[3, 3\] with 0"), (torch.tensor([[0.0, float("nan")]]), r"got \[1, 2\] with 1")],
)
def test_broken_points_are_refused(x, got):
    with pytest.raises(ValueError, match=got):
        Chequerboard().read_modes(x)
