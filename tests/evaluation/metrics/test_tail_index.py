"""Truths about the tail index difference: blind to uniform crowding as published, not so when anchored."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.collapse_alarm import half_splits
from fdistill.evaluation.metrics import (
    TailIndexDifference,
    TailIndices,
    crowding,
    neighbour_distances,
    tail_indices,
)
from fdistill.evaluation.metrics.tail_index import anchored_tail, tail_index, tail_threshold

pytestmark = pytest.mark.system  # seconds, too many for make check

N = 2000


def ring(modes, seed, n=N):
    """Points [n, 2] from some of eight Gaussians on a circle."""
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi / 4 * torch.tensor(modes)[torch.randint(len(modes), (n,), generator=generator)].double()
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * noise


def gaussian(seed, n=N):
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eight_draws(generated, reference):
    """The indices of eight independent draws of both sides, [8] each."""
    draws = [tail_indices(generated(seed), reference(100 + seed)) for seed in range(8)]
    return type(draws[0])(*(torch.stack(values) for values in zip(*draws, strict=True)))


def agrees(draws, published):
    """Whether eight draws have the mean of four others, and its sign beyond doubt, within their noise."""
    mean, spread = draws.mean(), draws.std()
    same_sign = published == 0 or mean * math.copysign(1, published) > 2 * spread / math.sqrt(8)
    return abs(mean - published) < 3 * spread * math.sqrt(1 / 8 + 1 / 4) and same_sign


@pytest.mark.parametrize(("modes", "anchored"), [(range(8), 0.0), (range(7), 0.16), (range(0, 8, 2), 2.3)])
def test_anchored_tid_rises_with_dropped_modes_and_tid_does_not(modes, anchored):
    found = eight_draws(lambda seed: ring(list(modes), seed), lambda seed: ring(list(range(8)), seed))
    assert agrees(found.anchored_tid, anchored)
    assert found.tid.mean() < 0.03
    assert found.count_ratio.mean() == pytest.approx(8 / len(modes), rel=0.05)


@pytest.mark.parametrize(("scale", "anchored"), [(1.0, 0.0), (0.9, 2.2), (0.7, 17.7), (0.5, 29.9), (1.3, -0.37)])
def test_anchored_tid_rises_as_a_gaussian_shrinks_and_tid_falls(scale, anchored):
    found = eight_draws(lambda seed: scale * gaussian(seed), gaussian)
    assert agrees(found.anchored_tid, anchored)
    assert scale > 1 or found.tid.mean() < 0.03
    assert found.neighbour_distance_ratio.mean() == pytest.approx(scale, rel=0.01)


def test_identical_samples_count_each_other_whatever_the_law():
    reference = ring(list(range(8)), 0)
    found = tail_indices(reference[:1].expand(N, 2), reference)
    counts = crowding(reference, found.eps).counts
    threshold = tail_threshold(counts, 0.1)
    assert_close(found.anchored_tid, 10 * (N / threshold).log() - tail_index(counts), rtol=1e-12, atol=0)
    assert found.anchored_tid == pytest.approx(39.9, abs=0.5)
    assert found.tid == -tail_index(counts)
    assert found.count_ratio == N / counts.double().mean()
    assert found.neighbour_distance_ratio == 0


def test_a_set_against_itself_turned_and_moved_has_no_difference():
    reference = gaussian(0, 300)
    axes = torch.linalg.qr(gaussian(1, 16)).Q
    for generated in (reference, reference.flip(0), reference @ axes + 7):
        found = tail_indices(generated, reference)
        assert (found.tid, found.count_ratio) == (0, 1)
        assert abs(found.anchored_tid) < 1e-15  # the same logarithms in another order
        assert_close(found.neighbour_distance_ratio, torch.ones_like(found.tid), rtol=1e-12, atol=0)


def test_scaling_both_sets_scales_eps_alone():
    generated, reference = gaussian(0, 300), gaussian(1, 300)
    before, after = tail_indices(generated, reference), tail_indices(7 * generated, 7 * reference)
    assert_close(after.eps, 7 * before.eps, rtol=1e-12, atol=0)
    assert_close(torch.stack(after[:4]), torch.stack(before[:4]), rtol=1e-12, atol=0)


def test_eps_is_the_median_distance_to_the_twentieth_neighbour_unless_given():
    generated, reference = gaussian(0, 301), gaussian(1, 301)
    assert tail_indices(generated, reference).eps == neighbour_distances(reference, 20).median()
    assert tail_indices(generated, reference, eps_neighbour=7).eps == neighbour_distances(reference, 7).median()
    assert tail_indices(generated, reference, eps=2.5).eps == 2.5
    few = tail_indices(generated[:20], reference[:20])
    assert few.eps == neighbour_distances(reference[:20], 19).median()


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_hill_finds_the_tail_of_a_pareto_law(exponent):
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = (1e6 * uniform.pow(-exponent)).round().long()
    assert tail_index(counts) == pytest.approx(exponent, rel=4 / math.sqrt(20_000))


def test_hill_of_five_counts_by_hand():
    counts = torch.tensor([1, 8, 2, 4, 1])
    assert tail_index(counts, k=0.4) == pytest.approx(1.5 * math.log(2))  # ln 8 and ln 4 above ln 2
    assert anchored_tail(counts, 0.4, torch.tensor(1.0)) == pytest.approx(3 * math.log(2))  # (3 + 2 + 1) ln 2 over 2


def test_the_tail_anchored_at_its_own_threshold_is_hills():
    counts = torch.randint(1, 50, (333,), generator=torch.Generator().manual_seed(0))
    for k in (0.001, 0.1, 0.5, 0.999):
        assert_close(anchored_tail(counts, k, tail_threshold(counts, k)), tail_index(counts, k), rtol=1e-12, atol=0)


def test_equal_counts_have_no_tail_and_one_above_zeros_an_infinite_one():
    assert tail_index(torch.full((40,), 7)) == 0
    assert tail_index(torch.zeros(40, dtype=torch.int64)) == 0
    assert tail_index(torch.tensor([3] + 39 * [0])) == math.inf


def test_constant_references_count_all_and_have_a_distance_ratio_of_one_against_their_like():
    same = torch.full((30, 3), 0.1)
    assert tail_indices(same, same) == (0, 0, 1, 1, 0)
    assert tail_indices(same + 5, same) == (0, 0, 1, 1, 0)
    spread = tail_indices(gaussian(0, 30)[:, :3], same)
    assert (spread.eps, spread.count_ratio, spread.neighbour_distance_ratio) == (0, 1 / 30, math.inf)


def test_without_the_sample_itself_a_mean_count_is_one_less_and_a_tail_of_zeros_raises():
    generated, reference = gaussian(0, 200), gaussian(1, 200)
    mean, without = (crowding(side, 4.0).counts.double().mean() for side in (generated, reference))
    found = tail_indices(generated, reference, eps=4.0, count_self=False)
    assert_close(found.count_ratio, (mean - 1) / (without - 1))
    assert tail_indices(100 * generated, reference, count_self=False).tid <= 0
    with pytest.raises(ValueError, match="count"):
        tail_indices(generated, reference, eps=1e-3, count_self=False)


def test_the_null_band_holds_equal_laws_and_not_a_generator_without_half_of_the_modes():
    reference = ring(list(range(8)), 0, n=1000)
    halves = half_splits(1000, 30, torch.Generator().manual_seed(0))
    draws = [tail_indices(reference[a], reference[b]) for a, b in halves]
    band = TailIndices(*(torch.stack(column) for column in zip(*draws, strict=True)))
    for values, centre in zip(band, (0, 0, 1, 1), strict=False):
        assert abs(values.mean() - centre) < 4 * values.std() / math.sqrt(30)
    same = tail_indices(ring(list(range(8)), 2, n=500), reference[:500])
    dropped = tail_indices(ring([0, 2, 4, 6], 1, n=500), reference[:500])
    low, high = (band.anchored_tid.mean() + side * 4 * band.anchored_tid.std() for side in (-1, 1))
    assert low < same.anchored_tid < high < dropped.anchored_tid


def test_unequal_or_too_few_samples_and_wrong_arguments_raise():
    generated, reference = gaussian(0, 50), gaussian(1, 40)
    with pytest.raises(ValueError, match="reference"):
        tail_indices(generated, reference)
    with pytest.raises(ValueError, match="generated"):
        tail_indices(generated[:1], reference[:1])
    for k in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="share"):
            TailIndexDifference(k=k)
    with pytest.raises(ValueError, match="eps_neighbour"):
        TailIndexDifference(eps_neighbour=0)
    with pytest.raises(ValueError, match="radius"):
        tail_indices(generated[:40], reference, eps=-1.0)
