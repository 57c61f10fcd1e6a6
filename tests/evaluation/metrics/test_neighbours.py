"""Truths about nearest neighbours: exact arithmetic on lattices, brute force elsewhere, nothing lost to rounding."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.metrics import (
    crowding,
    inside_manifolds,
    nearest,
    neighbour_distances,
    neighbour_statistics,
    neighbours,
    reference_balls,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_distances(a, b):
    return (a[:, None].double() - b[None].double()).norm(dim=2)


def lattice(n, seed):
    """Points with integer coordinates [n, 3]: many copies, and every distance many times."""
    return torch.randint(0, 5, (n, 3), generator=torch.Generator().manual_seed(seed))


def by_integers(generated, reference, k, strict):
    """Membership [n, m] of generated in the reference's balls, by integer arithmetic."""
    own = (reference[:, None] - reference[None]).square().sum(2)
    radii = own.sort(1).values[:, k]
    across = (generated[:, None] - reference[None]).square().sum(2)
    return across < radii if strict else across <= radii


@pytest.mark.parametrize("shift", [0.0, 0.3, 10 / 3])
@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-9])
def test_statistics_on_a_lattice_are_those_of_integer_arithmetic(scale, shift):
    a, b = lattice(150, 0), lattice(130, 1)
    found = neighbour_statistics(scale * (a.double() + shift), scale * (b.double() + shift), manifold_k=3, density_k=5)
    balls = by_integers(a, b, 5, strict=True)
    assert found.in_reference.equal(by_integers(a, b, 3, strict=False).any(1))
    assert found.in_generated.equal(by_integers(b, a, 3, strict=False).any(1))
    assert found.balls.equal(balls.sum(1))
    assert found.covered.equal(balls.any(0))


@pytest.mark.parametrize("turn", [False, True])
def test_counts_on_a_lattice_include_the_edge(turn):
    points = lattice(140, 2)
    exact = (points[:, None] - points[None]).square().sum(2)
    axes = torch.linalg.qr(normal(3, 3)).Q if turn else torch.eye(3, dtype=torch.float64)
    for squared in (0, 1, 2, 3, 9):
        assert crowding(points.double() @ axes, squared**0.5).counts.equal((exact <= squared).sum(1))


def test_one_pass_for_all_four_gives_what_each_function_gives():
    a, b = normal(90, 6), normal(70, 6, seed=1)
    found = neighbour_statistics(a, b, manifold_k=2, density_k=4)
    inside, balls = inside_manifolds(a, b, k=2), reference_balls(a, b, k=4)
    assert all(one.equal(other) for one, other in zip(found, (*inside, *balls), strict=True))


@pytest.mark.parametrize("strip", [1, 300, 2**20])
def test_the_size_of_a_strip_changes_nothing(monkeypatch, strip):
    a, b = lattice(137, 3).double() / 7, lattice(90, 4).double() / 7
    whole = (*neighbour_statistics(a, b), *crowding(a, 0.4), *nearest(a, b, 3)[:1], neighbour_distances(b, 2))
    monkeypatch.setitem(neighbours.STRIP, "cpu", strip)
    monkeypatch.setattr(neighbours, "LEAST_ROWS", 1)
    parts = (*neighbour_statistics(a, b), *crowding(a, 0.4), *nearest(a, b, 3)[:1], neighbour_distances(b, 2))
    for one, other in zip(whole, parts, strict=True):
        assert_close(one, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("m", "k"), [(1, 1), (15, 15), (33, 2), (500, 1), (500, 7), (500, 40), (500, 500)])
def test_the_nearest_are_those_of_brute_force(m, k):
    points, others = normal(60, 4), normal(m, 4, seed=1)
    expected = exact_distances(points, others).sort(dim=1)
    found = nearest(points, others, k)
    assert_close(found.distances, expected.values[:, :k], rtol=1e-12, atol=0)
    assert found.indices.equal(expected.indices[:, :k])


@pytest.mark.parametrize("k", [1, 3, 59])
def test_distances_within_a_set_do_not_count_the_point_itself(k):
    points = normal(60, 4)
    assert_close(neighbour_distances(points, k), exact_distances(points, points).sort().values[:, k])
    assert_close(crowding(points, 1.0).nearest, exact_distances(points, points).sort().values[:, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_copies_are_at_distance_zero_however_far_from_the_origin(dtype):
    points = (1000 + normal(50, 40)).to(dtype)
    twice = torch.cat([points, points])
    assert not nearest(points, points).distances.any()
    assert not neighbour_distances(twice, 1).any()
    assert not crowding(twice, 0.0).nearest.any()
    assert crowding(twice, 0.0).counts.eq(2).all()


def test_small_distances_keep_their_digits():
    others = normal(300, 64) * 100
    points = others[:20] + 1e-7
    assert_close(nearest(points, others).distances[:, 0], (points - others[:20]).norm(dim=1), rtol=1e-12, atol=0)


def test_moving_turning_and_scaling_changes_no_statistic():
    a, b = normal(120, 5), 0.9 * normal(110, 5, seed=1)
    axes = torch.linalg.qr(normal(5, 5, seed=2)).Q
    before, after = neighbour_statistics(a, b), neighbour_statistics(3 * a @ axes + 1e4, 3 * b @ axes + 1e4)
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))


def test_the_distances_of_others_survive_a_far_stray_point():
    a, b = lattice(150, 0).double(), lattice(130, 1).double()
    stray = torch.full((1, 3), 1e5, dtype=torch.float64)
    alone, beside = neighbour_statistics(a, b), neighbour_statistics(torch.cat([a, stray]), b)
    assert beside.in_reference[:-1].equal(alone.in_reference)
    assert beside.balls[:-1].equal(alone.balls)
    assert beside.covered.equal(alone.covered)


def test_neighbours_and_radii_that_are_none_raise():
    points = normal(5, 2)
    for call in (
        lambda: nearest(points, points, 0),
        lambda: neighbour_distances(points, 0),
        lambda: neighbour_statistics(points, points, manifold_k=0, density_k=1),
        lambda: neighbour_statistics(points, points, manifold_k=1, density_k=0),
    ):
        with pytest.raises(ValueError, match="counts"):
            call()
    for radius in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="radius"):
            crowding(points, radius)


def test_too_few_points_and_a_nan_raise():
    points = normal(5, 2)
    with pytest.raises(ValueError, match="samples"):
        nearest(points, points, 6)
    with pytest.raises(ValueError, match="features"):
        neighbour_distances(points, 5)
    with pytest.raises(ValueError, match="features"):
        crowding(points[:1], 1.0)
    with pytest.raises(ValueError, match="generated"):
        neighbour_statistics(points, points)
