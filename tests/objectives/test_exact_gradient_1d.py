"""With exact scores and ratio, every objective's expected gradient is the derivative of what it claims: 1-D."""

import pytest
from exact_problem import LEVELS_1D, problem_1d
from objective_claims import ALL, CLAIMS, assert_claim, concrete_subclasses, divergences, label

from fdistill.objectives import Objective
from fdistill.theory.divergences import FDivergence

SETTINGS = [(student, sigma) for student, levels in LEVELS_1D.items() for sigma in levels]


def test_every_objective_says_what_it_descends():
    silent = {cls.__name__ for cls in concrete_subclasses(Objective)} - {cls.__name__ for cls in CLAIMS}
    assert not silent, f"{sorted(silent)} claim nothing: say in CLAIMS of objective_claims.py what they descend"


def test_every_divergence_is_tried():
    untried = {cls.__name__ for cls in concrete_subclasses(FDivergence)} - {type(of).__name__ for of in divergences()}
    assert not untried, (
        f"{sorted(untried)} have no default arguments: build one in divergences() of objective_claims.py"
    )


@pytest.mark.parametrize(("student", "sigma"), SETTINGS)
@pytest.mark.parametrize("claim", ALL, ids=label)
def test_expected_gradient_is_the_derivative_of_the_claim(claim, student, sigma):
    assert_claim(claim, problem_1d(student, sigma))
