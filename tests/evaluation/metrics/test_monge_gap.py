"""The Monge gap is 0 for optimal maps, in closed form for others, and differentiable; and what it cannot see."""

import itertools
import math

import numpy as np
import pytest
import torch

from fdistill.evaluation.metrics import monge_gap


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(z, degrees):
    """z with its first half of coordinates turned into the second."""
    a, b = z.chunk(2, dim=1)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.cat([c * a - s * b, s * a + c * b], dim=1)


def test_reference_values():
    z = torch.tensor(np.random.default_rng(0).standard_normal((256, 2)))
    positive_definite = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    assert monge_gap(z, z @ positive_definite) == 0
    assert monge_gap(z, z + torch.tensor([3.0, -1.0])) == pytest.approx(0, abs=1e-12)
    assert monge_gap(z, -z) == pytest.approx(8.005195841700694, rel=1e-12)


def test_it_is_the_cost_less_that_of_the_best_of_all_permutations():
    z, x = normal(6, 3), normal(6, 3, seed=1)
    cost = torch.cdist(z, x).square()
    best = min(sum(cost[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
    assert monge_gap(z, x) == pytest.approx(float((cost.trace() - best) / 6), rel=1e-12)


def test_in_one_dimension_the_optimum_is_sorted():
    z, x = normal(200, 1), normal(200, 1, seed=1)
    sorted_cost = (z.sort(0).values - x.sort(0).values).square().mean()
    assert monge_gap(z, x) == pytest.approx(float((z - x).square().mean() - sorted_cost), rel=1e-10)


def test_gradients_of_convex_functions_have_none():
    z, w = normal(300, 2), normal(2, 5, seed=1)
    for x in ((z @ w).softmax(1) @ w.T, z * z.square().sum(1, keepdim=True), z.clamp(min=0)):
        assert monge_gap(z, x) == pytest.approx(0, abs=1e-12)
        assert monge_gap(z, -x) > 0.1


def test_a_turn_has_the_gap_of_its_law():
    z = normal(512, 2)
    assert monge_gap(z, turned(z, 60)) == pytest.approx(2 * 2 * (1 - 0.5), rel=0.1)  # 2 (nuclear norm - trace)


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_negative(seed, epsilon):
    n = 40
    assert monge_gap(normal(n, 2), normal(n, 2, seed=seed), epsilon) >= epsilon * math.log(n) - 1e-12


def test_a_collapsed_student_has_none_so_it_is_no_score_of_quality():
    z = normal(256, 2)
    assert monge_gap(z, torch.full_like(z, 1.5)) == 0
    assert monge_gap(z, turned(z, 30)) > 0.1  # of the right law


def test_it_vanishes_for_a_batch_in_many_dimensions():
    z = normal(128, 3072)
    x = turned(z, 60)  # the gap of the laws is 3,072
    assert (z - x).square().sum(1).mean() > 3000
    assert monge_gap(z, x) == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_entropic_gap_lies_within_its_bounds_and_goes_to_the_exact_one(seed):
    n = 12
    z, x = normal(n, 2), normal(n, 2, seed=seed)
    exact = monge_gap(z, x)
    for epsilon in (10.0, 1.0, 0.3):
        excess = monge_gap(z, x, epsilon) - exact
        assert epsilon * math.log(n) <= excess <= 2 * epsilon * math.log(n)


def test_the_entropic_gap_of_two_pairs_is_that_of_the_best_coupling():
    """Couplings of two and two have one parameter, tried on a fine grid."""
    z, x, epsilon = normal(2, 2), normal(2, 2, seed=4), 0.7
    share = torch.linspace(-60, 60, 200_001, dtype=torch.float64).sigmoid() / 2
    plan = torch.stack([share, share.flip(0), share.flip(0), share])
    cost = torch.cdist(z, x).square().flatten()[:, None]
    least = (plan * cost + epsilon * plan * plan.log()).sum(0).min()
    expected = (z - x).square().sum(1).mean() - least
    assert monge_gap(z, x, epsilon) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_its_gradient_is_that_of_finite_differences(epsilon):
    z, x = normal(9, 2).requires_grad_(), normal(9, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, x: monge_gap(z, x, epsilon), (z, x))


def test_descending_it_ends_at_an_optimal_map_of_the_same_centre():
    z, x = normal(60, 2), turned(normal(60, 2), 150).requires_grad_()
    centre, before = x.detach().mean(0), float(monge_gap(z, x.detach()))
    for _ in range(200):
        (gradient,) = torch.autograd.grad(monge_gap(z, x), x)
        x = (x - 2 * gradient).detach().requires_grad_()
    assert monge_gap(z, x) < 0.02 * before
    torch.testing.assert_close(x.mean(0), centre)


@pytest.mark.parametrize("epsilon", [0.0, 0.8])
def test_origins_scales_turns_and_order_do_not_matter_but_as_a_factor(epsilon):
    z, x = normal(50, 2), normal(50, 2, seed=1)
    gap = monge_gap(z, x, epsilon)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(monge_gap(80 * z + 1e5, 3 * x - 7, 240 * epsilon), 240 * gap, rtol=1e-8, atol=0)
    torch.testing.assert_close(monge_gap(turned(z, 40), turned(x, 40), epsilon), gap)
    torch.testing.assert_close(monge_gap(z[order], x[order], epsilon), gap)
    torch.testing.assert_close(monge_gap(x, z, epsilon), gap)
    torch.testing.assert_close(monge_gap(z.reshape(50, 1, 2), x.reshape(50, 1, 2), epsilon), gap)


def test_every_class_has_a_map_of_its_own():
    z, labels = normal(90, 2), torch.arange(90) % 3
    apart = z + 5 * normal(3, 2, seed=1)[labels]
    assert monge_gap(z, apart) > 1
    assert monge_gap(z, apart, labels=labels) == pytest.approx(0, abs=1e-12)
    uneven = (labels > 0).long()
    parts = [monge_gap(z[uneven == c], -apart[uneven == c]) for c in (0, 1)]
    torch.testing.assert_close(monge_gap(z, -apart, labels=uneven), (parts[0] + 2 * parts[1]) / 3)


def test_single_precision_is_computed_in_double():
    z, x = normal(30, 2).float(), normal(30, 2, seed=1).float().requires_grad_()
    gap = monge_gap(z, x, 2.0)
    assert gap.dtype == torch.float64
    assert torch.equal(gap, monge_gap(z.double(), x.double(), 2.0))
    assert torch.autograd.grad(gap, x)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("z", "x", "epsilon", "message"),
    [
        (
            normal(4, 2),
            normal(3, 2),
            0.0,
            "sample",
        ),
        (normal(4, 2), normal(4, 2) / 0, 0.0, "samples"),
        (normal(4, 2) * math.nan, normal(4, 2), 0.0, "latents"),
        (normal(4, 2), normal(4, 2), -1.0, "exact"),
        (normal(4, 2), normal(4, 2), math.inf, "got inf"),
        (
            normal(16, 2),
            -normal(16, 2),
            1e-7,
            "steps",
        ),
    ],
)
def test_what_has_no_gap_is_refused(z, x, epsilon, message):
    with pytest.raises(ValueError, match=message):
        monge_gap(z, x, epsilon)
