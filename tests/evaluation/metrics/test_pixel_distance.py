"""Truths about the Frechet distance of projected samples."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.metrics import PixelMoments, frechet_distance, pixel_frechet_distance
from fdistill.evaluation.metrics.blocks import ROWS
from fdistill.evaluation.metrics.pixel_distance import PROJECTED, Projection

LARGE = (3, 20, 21)  # 1,260 values: no multiple of 256


def images(shape, n, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def moments(x, batch_size=None):
    found = PixelMoments(x.shape[1:])
    for part in x.split(batch_size or len(x)):
        found.add(part)
    return found.total()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (2,), (1, 16, 16)])
def test_up_to_256_values_it_is_the_frechet_distance_to_the_last_bit_however_samples_were_divided(shape):
    x, y = images(shape, 2 * ROWS + 77), images(shape, 300, seed=1) * 0.8
    expected = frechet_distance(x.flatten(1), y.flatten(1))
    for size in (None, 100, ROWS):
        assert torch.equal(pixel_frechet_distance(moments(x, size), moments(y, size), shape), expected)


def test_directions_are_orthonormal_and_every_value_is_seen_by_one_of_them():
    seen = Projection(LARGE)(torch.eye(1260).view(-1, *LARGE))
    assert_close(seen.T @ seen, torch.eye(PROJECTED), atol=1e-5, rtol=0)
    assert ((seen != 0).sum(1) == 1).all()
    assert torch.equal(Projection(LARGE)(images(LARGE, 3)), Projection(LARGE)(images(LARGE, 3)))


def test_a_shift_of_the_mean_counts_on_average_as_in_all_values():
    shifts = torch.randn(200, *LARGE, generator=torch.Generator().manual_seed(3))
    projection = Projection(LARGE)
    ratio = projection(shifts).square().sum(1) * projection.factor / shifts.flatten(1).square().sum(1)
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    x = images(LARGE, 400)
    shifted = pixel_frechet_distance(moments(x + shifts[0]), moments(x), LARGE)
    assert_close(shifted.float(), projection(shifts[:1]).square().sum() * projection.factor, rtol=1e-3, atol=0)


def test_noise_that_averaging_pixels_would_hide_is_seen():
    x, y = images(LARGE, 2000) * 0.1, images(LARGE, 2000, seed=1) * 0.1
    stripes = 0.5 * torch.tensor([1.0, -1.0]).repeat(10).view(1, 1, 20, 1) * torch.randn(2000, 1, 1, 1)
    floor = pixel_frechet_distance(moments(x), moments(y), LARGE)
    assert pixel_frechet_distance(moments(x + stripes), moments(y), LARGE) > 20 * floor


def test_no_more_than_a_block_of_samples_is_kept():
    kept = PixelMoments(LARGE)
    for seed in range(5):
        kept.add(images(LARGE, 700, seed))
        assert len(kept._rows) < ROWS
    assert int(kept.total().count) == 3500


def test_what_has_no_gaussian_fit_is_refused_in_one_line():
    with pytest.raises(ValueError, match="samples"):
        PixelMoments((2,)).total()
    with pytest.raises(ValueError, match="broken"):
        moments(torch.full((3, 2), torch.nan))
