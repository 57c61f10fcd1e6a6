"""A reward tilts the law that a student comes to rest at, by an amount that is known."""

import math
from unittest import mock

import pytest
import torch
from exact_problem import Problem, affine, problem_1d
from objective_claims import Nearness, exact_samples, expected_gradients, relative_error, step
from stock_models import save, vae
from torch import nn

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.models.vae import Decoder
from fdistill.objectives import DMD2, DiffInstruct, NoisedSamples, RewardAugmented, SiD, TiltedTeacher, WarmStarted
from fdistill.objectives.image_rewards import Brightness
from fdistill.objectives.rewards import Reward, TargetReward
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import X0Prediction
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
            self.goal = data.goal

    reward = Fitted()
    objective = RewardAugmented(RewardAugmented(DiffInstruct(), Nearness(), 1.0), reward, 1.0)
    objective.prepare(mock.Mock(**{"in_pixels.return_value.goal": 0.25}))
    assert reward.goal == 0.25
    assert objective.networks()[-1] is reward
    assert len(objective.networks()) == 2


class Along(Reward):
    """The sum of all entries: linear."""

    def forward(self, x, labels):
        return x.flatten(1).sum(1)


class Matched(DMD2):
    """Keeps the teacher's value that it is given."""

    def loss(self, at):
        self.seen = at.teacher
        return super().loss(at)


def tilted_denoised(teacher, reward, beta, x, sigma):
    """D that a tilted teacher shows to its objective, at x [B, d]."""
    levels, inner = torch.full((len(x),), sigma, dtype=torch.float64), Matched(0.0)
    x_t = x.clone().requires_grad_()
    denoised = Denoiser(teacher, X0Prediction(VarianceExploding()))(x_t, levels)
    at = NoisedSamples(x_t, x_t, levels, 1.0, teacher=denoised, fake_score=torch.zeros_like(x))
    TiltedTeacher(inner, reward, beta).loss(at)
    return inner.seen


def test_tilted_teacher_is_that_of_the_tilted_law_where_the_reward_is_linear_and_the_law_gaussian():
    x = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shifted = GaussianMixture([[m + TILT * STD**2 for m in MEAN]], [STD])
    for sigma in (0.1, 1.0, 20.0):
        found = tilted_denoised(GaussianMixture([MEAN], [STD]), Along(), TILT, x, sigma)
        expected = Denoiser(shifted, X0Prediction(VarianceExploding()))(x, torch.full((9,), sigma, dtype=torch.float64))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_score_of_a_tilted_mixture_is_that_of_p_exp_beta_r_over_z_as_the_noise_vanishes():
    means, stds, shares = torch.tensor([[-0.9], [0.8]]).double(), torch.tensor([0.5, 0.6]).double(), [0.35, 0.65]
    precision = stds**-2 + TILT
    moved = (means[:, 0] / stds**2 + TILT * GOAL) / precision
    z = (-(TILT / (1 + TILT * stds**2)) * (means[:, 0] - GOAL) ** 2 / 2).exp() / (1 + TILT * stds**2).sqrt()
    weights = torch.tensor(shares).double() * z
    law = GaussianMixture(moved[:, None].tolist(), precision.rsqrt().tolist(), (weights / weights.sum()).tolist())
    x, errors = torch.linspace(-1.5, 2, 15, dtype=torch.float64)[:, None], []
    for sigma in (0.04, 0.02, 0.01):
        found = tilted_denoised(GaussianMixture(means.tolist(), stds.tolist(), shares), Nearness(GOAL), TILT, x, sigma)
        levels = torch.full((15,), sigma, dtype=torch.float64)
        expected = Denoiser(law, X0Prediction(VarianceExploding()))(x, levels)
        errors.append(((found - expected) / sigma**2).norm().item())
    assert errors[-1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_beta_of_nought_leaves_the_teacher():
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    teacher = GaussianMixture([MEAN], [STD])
    plain = Denoiser(teacher, X0Prediction(VarianceExploding()))(x, torch.full((5,), 0.5, dtype=torch.float64))
    assert torch.equal(tilted_denoised(teacher, Nearness(), 0.0, x, 0.5), plain)


def test_reward_of_latents_is_that_of_their_images_and_so_is_its_gradient(tmp_path):
    decoder = Decoder(save(vae(scaling_factor=0.4, shift_factor=0.3), tmp_path / "vae"))
    decoder.vae.double()
    latents = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at = NoisedSamples(latents.clone().requires_grad_(), latents, torch.ones(2), 1.0, decoder=decoder)
    augmented = RewardAugmented(SiD(), Brightness(), 1.0)
    worth = augmented.worth(at.x, at)
    torch.testing.assert_close(worth.float(), Brightness()(decoder(latents)))
    (found,) = torch.autograd.grad(worth.sum(), at.x)
    along, step = torch.randn(latents.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 1e-5
    with torch.no_grad():
        moved = (augmented.worth(latents + side * step * along, at).sum() for side in (1, -1))
    assert (found * along).sum().item() == pytest.approx((next(moved) - next(moved)).item() / (2 * step), rel=1e-6)


def test_reward_of_a_picture_ends_where_its_range_does():
    x = torch.tensor([-1.5, 0.5, 1.5]).reshape(3, 1, 1, 1).requires_grad_()
    at = NoisedSamples(x, x, torch.ones(3), 1.0)
    worth = RewardAugmented(SiD(), TargetReward(2.0), 1.0).worth(x, at)
    torch.testing.assert_close(worth, torch.tensor([-4.5, -1.125, -0.5]))
    (slope,) = torch.autograd.grad(worth.sum(), x)
    assert slope.flatten().tolist() == [0.0, 1.5, 0.0]


def test_reward_of_another_shape_is_refused():
    class Map(Reward):
        def forward(self, x, labels):
            return x

    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"expected \[3\], got \[3, 2\]"):
        RewardAugmented(SiD(), Map(), 1.0).worth(x, NoisedSamples(x, x, torch.ones(3), 1.0))


def test_a_reward_that_raises_is_named():
    class Picky(Reward):
        def forward(self, x, condition):
            return condition["x"]

    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="Picky raised KeyError"):
        RewardAugmented(SiD(), Picky(), 1.0).worth(x, NoisedSamples(x, x, torch.ones(3), 1.0))


def test_a_tilted_teacher_tells_the_reward_of_its_mean_without_descending_it():
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    levels = torch.ones(5, dtype=torch.float64)
    at = NoisedSamples(x, x, levels, 1.0, teacher=2 * x, fake_score=torch.zeros(5, 2).double())
    term = TiltedTeacher(DMD2(0.0), Along(), 0.5).loss(at).terms["reward"]
    assert (term.weight, term.value.requires_grad) == (0.0, False)
    assert torch.equal(term.value, -2 * x.detach().sum(1))
