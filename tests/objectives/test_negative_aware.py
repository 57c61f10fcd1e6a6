"""DiffusionNFT's loss is least where the covariance of weight and sample says, which is the tilted law's denoiser."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.objectives.negative_aware import negative_aware_loss, optimality

X_0 = torch.linspace(-6, 6, 2001, dtype=torch.float64)
SIGMA = 0.8
X_T = torch.linspace(-2, 2, 9, dtype=torch.float64)


def log_mixture(x):
    parts = [math.log(w / s) - (x - m).square() / (2 * s**2) for m, s, w in ((-1.0, 0.3, 0.6), (0.8, 0.5, 0.4))]
    return torch.stack(parts).logsumexp(0)


def weight(x):
    """Some reward in [0, 1]."""
    return torch.sigmoid(2 * x)


def posterior(log_density):
    """p(x_0 | x_t) on the lattice, [9, 2001]."""
    return (log_density - (X_T[:, None] - X_0).square() / (2 * SIGMA**2)).softmax(1)


def mean(law, value):
    return (law * value).sum(1)


OLD = posterior(log_mixture(X_0))
D_OLD = mean(OLD, X_0)
COVARIANCE = mean(OLD, weight(X_0) * X_0) - mean(OLD, weight(X_0)) * D_OLD


def tilted(beta):
    """The denoiser of p_old exp(2 w / beta) / Z."""
    return mean(posterior(log_mixture(X_0) + 2 * weight(X_0) / beta), X_0)


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_its_stationary_point_is_the_old_denoiser_moved_by_a_covariance(beta):
    def gradient(at):
        at = at.clone().requires_grad_()
        n = len(X_0)
        pairs = [value.repeat_interleave(n)[:, None] for value in (at, D_OLD)]
        x_0, w = X_0.repeat(len(X_T))[:, None], weight(X_0).repeat(len(X_T))
        loss = negative_aware_loss(*pairs, x_0, w, beta, normalised=False)
        (found,) = torch.autograd.grad((OLD.flatten() * loss).sum(), at)
        return found

    assert_close(gradient(D_OLD + 2 / beta * COVARIANCE), torch.zeros(9, dtype=torch.float64), atol=1e-9, rtol=0)
    assert (gradient(D_OLD).abs() > 1e-2).all()


def test_the_stationary_point_is_the_tilted_denoiser_to_first_order():
    """|D* - D_tilted| falls with the square of 1 / beta, as D_tilted - D_old falls with 1 / beta."""
    errors = torch.stack([(D_OLD + 2 / beta * COVARIANCE - tilted(beta)).norm() for beta in (10.0, 20.0, 40.0)])
    assert ((errors[:-1] / errors[1:]).log2() - 2).abs().max() < 0.1


def test_without_a_preference_nothing_moves():
    x_0, old = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 5)
    at = old.clone().requires_grad_()
    loss = negative_aware_loss(at, old, x_0, torch.full((64,), 0.5), 0.7)
    (gradient,) = torch.autograd.grad(loss.sum(), at)
    assert_close(gradient, torch.zeros_like(gradient))


def test_normalised_errors_are_of_one_scale():
    x_0, old = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 50)
    gradients = []
    for scale in (1.0, 100.0):
        at = old.clone().requires_grad_()
        negative_aware_loss(at, old, scale * x_0, torch.ones(8), 1.0).sum().backward()
        gradients.append(at.grad)
    assert_close(gradients[0], gradients[1])


def test_weights_are_probabilities():
    assert optimality(torch.tensor([-5.0, -1.0, 0.0, 0.5, 5.0])).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]
