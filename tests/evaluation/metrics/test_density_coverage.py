"""Truths about density and coverage; reference values by prdc 0.2."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.metrics import density_coverage, reference_balls


@pytest.fixture(scope="module")
def pair():
    generator = np.random.default_rng(0)
    real, fake = generator.standard_normal((500, 16)), generator.standard_normal((500, 16))
    return torch.from_numpy(fake), torch.from_numpy(real)


def test_of_equal_laws_agrees_with_prdc(pair):
    assert density_coverage(*pair) == pytest.approx((1.0832, 0.974), abs=1e-12)


def test_of_a_shrunk_law_agrees_with_prdc(pair):
    fake, real = pair
    assert density_coverage(0.5 * fake, real) == pytest.approx((7.0684, 0.998), abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_of_a_set_to_itself_is_exactly_one(pair, k):
    assert density_coverage(pair[1], pair[1], k) == (1, 1)


def test_closed_balls_of_a_set_to_itself_hold_one_point_more(pair):
    assert density_coverage(pair[1], pair[1], k=5, strict=False) == (6 / 5, 1)


def test_expected_values_for_equal_laws_are_those_of_ranks():
    # a generated sample is one of the k nearest of m points with probability k / m; a ball misses all n generated ones
    # where the k nearest of the other n + m - 1 samples are all real
    n, m, k, draws = 60, 40, 3, 400
    sets = torch.randn(draws, n + m, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.tensor([density_coverage(both[:n], both[n:], k) for both in sets], dtype=torch.float64)
    exact = torch.tensor([1.0, 1 - math.comb(m - 1, k) / math.comb(n + m - 1, k)], dtype=torch.float64)
    assert ((values.mean(0) - exact).abs() < 4 * values.std(0) / math.sqrt(draws)).all()


def test_every_ball_counts_where_generated_samples_sit_in_its_middle():
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    centre = torch.zeros(3, 2)
    # k = 1: all radii are 2, the centre is at sqrt 2 from all four
    assert reference_balls(centre, corners, k=1).counts.tolist() == [4, 4, 4]
    assert density_coverage(centre, corners, k=1) == (4, 1)


def test_a_point_on_the_edge_is_outside_open_and_inside_closed_balls():
    line, end = torch.tensor([[0.0], [0.1], [0.2], [0.3]]), torch.tensor([[0.4]])
    # float32: 0.3 is 1e-8 too large, and the gap to 0.4 by as much too small
    exact = 0.1 * torch.arange(5, dtype=torch.float64)[:, None]
    assert density_coverage(exact[4:], exact[:4], k=1) == (0, 0)
    assert density_coverage(exact[4:], exact[:4], k=1, strict=False) == (1, 0.25)
    assert density_coverage(end, line, k=1) == (1, 0.25)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_constant_features_fill_closed_balls_of_radius_zero_and_open_ones_not(value):
    same = torch.full((6, 7), value, dtype=torch.float64)
    assert density_coverage(same, same) == (0, 0)
    assert density_coverage(same, same, strict=False) == (6 / 5, 1)


def test_dropping_half_of_the_modes_halves_coverage_and_leaves_density():
    draw = torch.randn(2, 1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real = draw[0] + 100 * (torch.arange(1000) % 4)[:, None]
    fake = draw[1] + 100 * (torch.arange(1000) % 2)[:, None]
    counts, covered = reference_balls(fake, real)
    assert not covered[torch.arange(1000) % 4 >= 2].any()
    assert covered[torch.arange(1000) % 4 < 2].double().mean() > 0.97
    assert_close(counts.double().mean() / 5, torch.tensor(1.0, dtype=torch.float64), rtol=0.05, atol=0)


def test_one_generated_sample_is_enough_and_too_few_real_ones_raise(pair):
    fake, real = pair
    one = density_coverage(fake[:1], real)
    assert one.density == reference_balls(fake[:1], real).counts[0].double() / 5
    with pytest.raises(ValueError, match="reference"):
        density_coverage(fake, real[:5])
    with pytest.raises(ValueError, match="counts"):
        density_coverage(fake, real, k=0)
