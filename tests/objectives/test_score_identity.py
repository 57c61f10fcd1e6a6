"""The identities of score matching through both networks, and what detaching would break."""

import pytest
import torch
from exact_problem import problem_1d, problem_2d
from objective_claims import exact_samples, expected_gradients, relative_error

from fdistill.objectives import SIM, SiD
from fdistill.objectives.base import inner
from fdistill.objectives.score_identity import sim

PROBLEMS = [problem_1d("affine", 0.5), problem_2d("affine", 0.5)]


@pytest.mark.parametrize("problem", PROBLEMS, ids=["1-D", "2-D"])
def test_every_function_of_the_noised_sample_is_orthogonal_to_the_fake_score_less_that_of_the_noise(problem):
    share, samples = exact_samples(problem)
    for direction in (samples.x_t, samples.x_t.sin(), samples.teacher, samples.x_t.square() + 1):
        mean = (share * sim(direction, samples)).sum().item()
        assert mean == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS, ids=["1-D", "2-D"])
def test_detaching_the_direction_of_score_implicit_matching_breaks_its_gradient(problem):
    share, samples = exact_samples(problem)
    exact = expected_gradients(SIM(0.3), problem, share, samples)["student"]
    y = samples.fake_score - samples.teacher
    direction = y / (inner(y, y) / problem.entries + 0.3**2).sqrt()[:, None] / problem.entries
    for detached, is_exact in ((direction, True), (direction.detach(), False)):
        value = -(share * sim(detached, samples)).sum()
        (found,) = torch.autograd.grad(value, problem.theta, retain_graph=True)
        error = relative_error(found, exact)
        assert error < 1e-12 if is_exact else error > 0.1


@pytest.mark.parametrize("problem", PROBLEMS, ids=["1-D", "2-D"])
def test_wide_pseudo_huber_distance_is_score_identity_distillation_at_one(problem):
    # d(y) = |y|^2 / (2 c) + O(c^-3)
    share, samples = exact_samples(problem)
    quadratic = expected_gradients(SiD(1.0, "uniform"), problem, share, samples)["student"]
    errors = [
        relative_error(c * expected_gradients(SIM(c), problem, share, samples)["student"], quadratic)
        for c in (10.0, 20.0, 40.0)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)
