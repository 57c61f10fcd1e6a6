"""The policy gradient is the gradient of the expected reward, which an exact Gaussian gives by quadrature."""

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.objectives.policy_gradient import is_clipped, policy_loss
from fdistill.objectives.reward_algorithms import DDPO, FlowGRPO, MixGRPO
from fdistill.sampling.step_law import StepLaw
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import X0Prediction
from fdistill.training.rollout import roll_out

LEVELS = [4.0, 1.5, 0.6, 0.2, 0.0]
STEPS = 3  # that end above zero noise
MEAN, STD, TARGET = 0.3, 0.7, 1.4
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)


def quadrature(dims):
    """Standard normal numbers [5^dims, dims] and shares: exact for polynomials of degree 9 in each."""
    z = torch.tensor(list(itertools.product(NODES, repeat=dims)), dtype=torch.float32)
    shares = torch.tensor(list(itertools.product(WEIGHTS, repeat=dims)), dtype=torch.float64).prod(1)
    return z, shares / shares.sum()


def denoised(theta, x, sigma, slope):
    """The exact D of N(MEAN, STD^2), moved at step k by theta_k (1 + slope x); x [B, 1], sigma [B]."""
    step = (sigma[:, None] - torch.tensor(LEVELS[:-1])).abs().argmin(1)
    gain = STD**2 / (STD**2 + sigma.square())
    exact = MEAN + gain[:, None] * (x - MEAN)
    return exact + theta[step, None] * (1 + slope * x)


def rollout(algorithm, theta, slope, turn=0):
    """All nodes, and their shares."""
    z, shares = quadrature(1 + STEPS)
    draws = iter(z[:, 1:].unbind(1))
    etas = algorithm.etas(turn, STEPS)

    def denoise(x, sigma, rows):
        return denoised(theta, x, torch.full((len(x),), sigma), slope)

    made = roll_out(denoise, z[:, :1], LEVELS, etas, lambda: next(draws)[:, None], "sigma", 1000)
    return made, shares, etas


def reward(x):
    return -(x[:, 0].double() - TARGET).square() / 2


def objective(algorithm, theta, slope, turn, reference):
    """Expected reward, less kl_weight times the divergences of the steps, and by how much each theta_k moves it."""

    def value(at):
        made, shares, _ = rollout(algorithm, at, slope, turn)
        expected = (shares * reward(made.samples)).sum()
        if algorithm.kl_weight:
            loss, _ = pair_loss(algorithm, made, shares, at, at, slope, reference)
            expected = expected - algorithm.kl_weight * loss[1]
        return float(expected)

    eye = torch.eye(len(theta))
    h = 0.05  # the reward is a parabola in each theta_k, of which a central difference is the derivative
    return [(value(theta + h * e) - value(theta - h * e)) / (2 * h) for e in eye]


def pair_loss(algorithm, made, shares, theta, old_theta, slope, reference, updated=False):
    """Policy loss and divergence, summed over steps and averaged over the nodes."""
    n, k = len(made.samples), len(made.sigma)
    advantage = reward(made.samples).float()
    pairs = made.policy_pairs(torch.arange(n * k), advantage, Condition(), updated)
    known = None if reference is None else denoised(reference, pairs.x, pairs.sigma, slope)
    found = algorithm.loss(pairs, denoised(theta, pairs.x, pairs.sigma, slope), known, None)
    weight = shares.repeat(k)
    return ((weight * found.policy).sum(), 0 if found.kl is None else (weight * found.kl).sum()), found


CASES = {
    "Flow-GRPO": (FlowGRPO(1.2, kl_weight=0.0), 0),
    "without a clip": (FlowGRPO(0.8, clip=float("inf"), kl_weight=0.0), 0),
    "renoising": (FlowGRPO(float("inf"), kl_weight=0.0), 0),
    "DDPO at the posterior": (DDPO(1.0), 0),
    "the first window": (MixGRPO(1.2, window=1, every=1), 0),
    "the middle window": (MixGRPO(1.2, window=1, every=1), 1),
    "a window of two at the end": (MixGRPO(0.7, window=2, every=1), 1),
    "with a divergence": (FlowGRPO(1.2, kl_weight=0.3), 0),
}


@pytest.mark.parametrize("updated", [False, True], ids=["on policy", "old log-probabilities kept"])
@pytest.mark.parametrize("case", CASES)
def test_its_gradient_is_the_finite_difference_of_the_expected_reward(case, updated):
    """For every step with a density; a step without one (outside of the window, the last) gets none."""
    algorithm, turn = CASES[case]
    slope = 0.0 if algorithm.kl_weight else 0.2  # a constant shift has a divergence that no state changes
    start = torch.tensor([0.1, -0.2, 0.15, 0.05])
    reference = torch.tensor([0.3, 0.1, -0.1, 0.0]) if algorithm.kl_weight else None
    theta = start.clone().requires_grad_()
    made, shares, etas = rollout(algorithm, start, slope, turn)
    (policy, kl), _ = pair_loss(algorithm, made, shares, theta, start, slope, reference, updated)
    (ours,) = torch.autograd.grad(policy + algorithm.kl_weight * kl, theta)
    expected = objective(algorithm, start, slope, turn, reference)
    learns = [eta > 0 for eta in etas] + [False]
    assert any(learns)
    for step, is_stochastic in enumerate(learns):
        if is_stochastic:
            assert float(-ours[step]) == pytest.approx(expected[step], rel=2e-4, abs=1e-5)
        else:
            assert float(ours[step]) == 0


def test_away_from_the_old_policy_the_loss_still_weighs_what_the_old_one_made():
    """One stochastic step: E_old[w A] is the expected reward of the new step, so its gradient is exact far from w=1."""
    algorithm, old = MixGRPO(1.2, window=1, every=1, clip=float("inf")), torch.zeros(4)
    theta = torch.tensor([0.0, 0.0, 0.02, 0.0], requires_grad=True)
    made, shares, _ = rollout(algorithm, old, 0.0, 2)
    (policy, _), _ = pair_loss(algorithm, made, shares, theta, old, 0.0, None, updated=True)
    moved, _, _ = rollout(algorithm, theta.detach(), 0.0, 2)
    assert float(-policy.detach()) == pytest.approx(float((shares * reward(moved.samples)).sum()), rel=1e-3)


def test_the_clip_bounds_the_loss_and_stops_what_has_gone_far_enough():
    log_prob = torch.linspace(-0.5, 0.5, 41, dtype=torch.float64).repeat(2).requires_grad_()
    advantage = torch.tensor([1.5, -0.5], dtype=torch.float64).repeat_interleave(41)
    zero = torch.zeros(82, dtype=torch.float64)
    clipped, free = (policy_loss(log_prob, zero, advantage, clip) for clip in (0.2, float("inf")))
    assert (clipped >= free).all()
    (gradient,) = torch.autograd.grad(clipped.sum(), log_prob, retain_graph=True)
    (expected,) = torch.autograd.grad(free.sum(), log_prob)
    stopped = is_clipped(log_prob, zero, advantage, 0.2)
    assert 0 < int(stopped.sum()) < 41
    assert (gradient[stopped] == 0).all()
    assert_close(gradient[~stopped], expected[~stopped])


def test_the_divergence_regularised_value_of_the_tilted_mixture_is_the_largest_and_beta_ln_z():
    """max E r - beta sum KL = beta ln E_p e^{r/beta}, reached by the denoiser of p e^{r/beta} / Z in small steps.

    With r(x) = x the tilt of a mixture is one of means m + s^2 / beta and shares w exp(m / beta + s^2 / (2 beta^2)).
    """
    beta, means, stds, shares = 1.5, [-1.2, 0.9], [0.4, 0.6], [0.7, 0.3]
    tilts = [np.exp(m / beta + s**2 / (2 * beta**2)) for m, s in zip(means, stds, strict=True)]
    tilted_shares = [w * float(tilt) for w, tilt in zip(shares, tilts, strict=True)]
    tilted_means = [[m + s**2 / beta] for m, s in zip(means, stds, strict=True)]
    prior, tilt = (
        Denoiser(GaussianMixture(*law), X0Prediction(VarianceExploding()))
        for law in (([[m] for m in means], stds, shares), (tilted_means, stds, tilted_shares))
    )
    algorithm, n = FlowGRPO(1.0, kl_weight=beta), 2000

    def value(share, steps):
        """E r - beta sum ln q / p of D + share (D_tilt - D), and the same with the mean of each logarithm."""
        generator = torch.Generator().manual_seed(0)

        def draw():
            return torch.randn(n, 1, generator=generator)

        def policy(x, sigma):
            base = prior(x, sigma)
            return base + share * (tilt(x, sigma) - base)

        levels = [*np.geomspace(100.0, 0.02, steps).tolist(), 0.0]
        way = (levels, algorithm.etas(0, steps - 1), draw, "sigma", n)
        made = roll_out(lambda x, sigma, _: policy(x, torch.full((n,), sigma)), draw(), *way)
        pairs = made.policy_pairs(torch.arange(n * (steps - 1)), torch.zeros(n), Condition(), True)
        base = prior(pairs.x, pairs.sigma)
        kl = algorithm.loss(pairs, policy(pairs.x, pairs.sigma), base, None).kl.sum()
        ratio = pairs.old_log_prob - StepLaw.of(base, pairs.x, pairs.old_share, pairs.fresh).log_prob(pairs.target)
        return [float(made.samples.mean() - beta * cost / n) for cost in (ratio.sum(), kl)]

    best = beta * float(np.log(sum(tilted_shares)))
    (coarse, _), (fine, by_mean) = value(1.0, 50), value(1.0, 100)
    assert (best - coarse) / (best - fine) == pytest.approx(2, abs=0.15)  # of first order in the step
    assert 2 * fine - coarse == pytest.approx(best, abs=0.01)
    assert by_mean == pytest.approx(fine, abs=0.1)
    assert all(value(share, 100)[0] < fine for share in (0.0, 0.6, 1.4))
