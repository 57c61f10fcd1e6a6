"""A reward tilts the law that a student comes to rest at, by an amount that is known."""

import math

import pytest
import torch
from exact_problem import Problem, affine, problem_1d
from objective_claims import Nearness, exact_samples, expected_gradients, relative_error, step
from torch import nn

from fdistill.models.networks import GaussianMixture
from fdistill.objectives import DiffInstruct, RewardAugmented, SiD, WarmStarted
from fdistill.theory.schedules import Linear

MEAN, STD, GOAL, TILT = [0.4, -0.3], 0.7, 1.0, 1.5


def residual(sigma, normaliser, d):
    """Gradient at the tilted law N(mean, std^2) ~ p exp(TILT r), over that of the reward alone."""
    precision = STD**-2 + TILT
    mean = [(m / STD**2 + TILT * GOAL) / precision for m in MEAN[:d]]
    factor = torch.eye(d, dtype=torch.float64) * precision**-0.5
    if d == 2:
        c, s = math.cos(0.5), math.sin(0.5)
        factor = factor @ torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    theta = torch.cat([torch.tensor(mean, dtype=torch.float64), factor.flatten()]).requires_grad_()
    problem = Problem(GaussianMixture([MEAN[:d]], [STD]), affine, theta, sigma)
    beta = TILT * step(normaliser, sigma) * sigma**2
    share, samples = exact_samples(problem)
    found = expected_gradients(RewardAugmented(DiffInstruct(normaliser), Nearness(GOAL), beta), problem, share, samples)
    return ((found["student"] + found["reward"]).norm() / found["reward"].norm()).item()


@pytest.mark.parametrize("normaliser", ["uniform", "sigma"])
@pytest.mark.parametrize("d", [1, 2])
def test_law_tilted_by_the_reward_is_where_reverse_kl_rests_as_the_noise_vanishes(d, normaliser):
    errors = [residual(sigma, normaliser, d) for sigma in (0.04, 0.02, 0.01)]
    assert errors[-1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


def test_reward_adds_its_own_gradient_and_leaves_that_of_the_objective():
    problem = problem_1d("affine", 0.5)
    share, samples = exact_samples(problem)
    alone = expected_gradients(DiffInstruct(), problem, share, samples)
    found = expected_gradients(RewardAugmented(DiffInstruct(), Nearness(), 0.4), problem, share, samples)
    assert torch.equal(found["student"], alone["student"])
    mean = (share * Nearness()(samples.x, None)).sum()
    (climbed,) = torch.autograd.grad(mean, problem.theta, retain_graph=True)
    assert relative_error(found["reward"], -0.4 * climbed) < 1e-12


def test_reward_stays_while_its_objective_changes():
    early, late = DiffInstruct(), SiD()
    both = RewardAugmented(WarmStarted(late, early, 5), Nearness(), 0.4)
    assert both.at(4).objective is early
    assert both.at(5).objective is late
    assert both.at(4).needs == early.needs
    assert both.at(4).reward is both.reward


def test_beta_of_nought_asks_for_no_reward():
    class Never(Nearness):
        def forward(self, x, labels):
            raise AssertionError("nobody asked for this reward")

    _, samples = exact_samples(problem_1d("affine", 0.5))
    assert set(RewardAugmented(DiffInstruct(), Never(), 0.0).loss(samples).terms) == {"student"}


def test_beta_may_follow_the_updates_of_the_student():
    _, samples = exact_samples(problem_1d("affine", 0.5))
    ramp = RewardAugmented(DiffInstruct(), Nearness(), Linear(0.0, 1.0, 100))
    assert [ramp.loss(samples._replace(update=n)).terms["reward"].weight for n in (0, 50, 100)] == [0.0, 0.5, 1.0]


def test_reward_moves_with_the_objective_and_is_fitted_to_its_data():
    class Fitted(Nearness):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def prepare(self, data):
            self.goal = data

    reward = Fitted()
    objective = RewardAugmented(RewardAugmented(DiffInstruct(), Nearness(), 1.0), reward, 1.0)
    objective.prepare(0.25)
    assert reward.goal == 0.25
    assert objective.networks()[-1] is reward
    assert len(objective.networks()) == 2
