"""The discriminator's optimum is the log density ratio, and its value there is a Jensen-Shannon divergence."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.objectives import discriminator_loss
from fdistill.objectives.adversarial import adversarial_term
from fdistill.theory.divergences import JensenShannon

# two laws on three points, as multiplicities in batches of 8
REAL, FAKE = torch.tensor([1, 2, 5]), torch.tensor([4, 3, 1])


def loss_of(logits):
    return discriminator_loss(logits.repeat_interleave(FAKE), logits.repeat_interleave(REAL))


def test_optimal_logit_is_the_log_ratio_of_real_to_fake():
    logits = (REAL / FAKE).log().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(logits), logits)
    assert_close(gradient, torch.zeros(3), rtol=0, atol=1e-7)


def test_value_at_the_optimum_is_two_ln_two_minus_jensen_shannon():
    ratio = REAL / FAKE
    jensen_shannon = (FAKE / 8 * JensenShannon().f(ratio)).sum().item()
    assert loss_of(ratio.log()).item() == pytest.approx(2 * math.log(2) - jensen_shannon, rel=1e-6)


def test_every_other_logit_loses():
    optimum, best = (REAL / FAKE).log(), loss_of((REAL / FAKE).log())
    assert all(loss_of(optimum + step * axis) > best for axis in torch.eye(3) for step in (-0.5, 0.5))


def test_indistinguishable_samples_cost_two_ln_two():
    assert discriminator_loss(torch.zeros(4), torch.zeros(7)).item() == pytest.approx(2 * math.log(2))


def test_adversarial_term_falls_as_the_sample_looks_more_real_and_pushes_hardest_where_it_looks_fake():
    logit = torch.tensor([-20.0, -1.0, 0.0, 1.0, 20.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(adversarial_term(logit, 0.3, 0).value.sum(), logit)
    assert (gradient < 0).all()
    assert (gradient.diff() > 0).all()
    assert_close(gradient[0].item(), -1.0)  # non-saturating: full slope on a sample that is surely fake


def test_losses_of_bfloat16_logits_are_computed_in_float32():
    logit = torch.full((4,), 0.5, dtype=torch.bfloat16)
    assert discriminator_loss(logit, logit).dtype == adversarial_term(logit, 1.0, 0).value.dtype == torch.float32
