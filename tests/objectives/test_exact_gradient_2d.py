"""The same in 2-D, where scores are vectors; and what the normaliser by sample does to the gradient there."""

import math

import pytest
import torch
from exact_problem import LEVELS_2D, Quadrature, problem_2d
from objective_claims import ALL, assert_claim, claimed_gradient, gradients_of_loss, label, matching

from fdistill.objectives import DiffInstruct
from fdistill.theory.divergences import ReverseKL

pytestmark = pytest.mark.system  # seconds, too many for make check

SETTINGS = [(student, sigma) for student, levels in LEVELS_2D.items() for sigma in levels]


@pytest.mark.parametrize(("student", "sigma"), SETTINGS)
@pytest.mark.parametrize("claim", ALL, ids=label)
def test_expected_gradient_is_the_derivative_of_the_claim(claim, student, sigma):
    assert_claim(claim, problem_2d(student, sigma))


def test_normaliser_by_sample_bends_the_gradient_of_few_dimensions():
    problem, n = problem_2d("affine", 1.0), 200_000
    generator = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, n, 2, dtype=torch.float64, generator=generator)
    nodes = Quadrature(torch.zeros(n, dtype=torch.int64), z, eps, torch.full((n,), 1 / n, dtype=torch.float64))
    samples = problem.noised(nodes)
    exact = claimed_gradient(matching(ReverseKL(), "uniform"), problem)

    def degrees(normaliser):
        found = gradients_of_loss(DiffInstruct(normaliser), problem, nodes.share, samples)["student"]
        return math.degrees(torch.acos(torch.cosine_similarity(found, exact, dim=0)))

    assert degrees("sigma") < 1
    assert degrees("sample") > 8
